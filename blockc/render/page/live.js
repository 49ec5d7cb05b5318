// Live figures, as the server sends them; does nothing in a page that no server sent.
(() => {
  const state = document.getElementById("live-state");
  if (!state || !location.protocol.startsWith("http")) {
    if (state) state.textContent = "This copy of the page came from no server: there are no live figures in it.";
    return;
  }
  const AGAIN_MS = 5000;
  const RATE_S = 10; // what rates are of
  const KEPT_S = 60; // what lines and tables are of
  const cells = new Map();
  document.querySelectorAll("#live-apps [data-app]").forEach((row) => {
    const [tenant, app] = blockc.apps[Number(row.dataset.app)];
    cells.set(`${tenant}/${app}`, [...row.querySelectorAll("td")]);
  });
  let history = []; // [{at, ...counts}], oldest first
  let apps = new Map(); // address -> {row, tokens: [[at, count], ...]}
  let lines = {}; // what each figure was

  // Names as the page shows them: what cannot be seen is an escape there, too.
  const printable = (text) =>
    text.replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, (char) => {
      const code = char.codePointAt(0);
      const short = { 9: "\\t", 10: "\\n", 13: "\\r" }[code];
      if (short) return short;
      if (code < 256) return `\\x${code.toString(16).padStart(2, "0")}`;
      return code < 65536 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
    });

  const number = (value, digits = 1) => (value === null || !Number.isFinite(value) ? "-" : value.toFixed(value >= 100 ? 0 : digits));
  const whole = (value) => number(value, 0);
  const time = (value) => (value === null ? "-" : value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`);
  const percent = (value) => (value === null ? "-" : `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`);
  const share = (part, total) => (total > 0 ? part / total : null);

  const shown = {
    tokens: number, running: whole, waiting: whole, rows: number, chains: number,
    kv: percent, cached: percent, evicted: whole, preemptions: whole, sides: whole,
  };
  const show = (key, value) => {
    const words = shown[key](value);
    document.querySelector(`[data-live="${key}"]`).textContent = words;
    const kept = (lines[key] ??= []);
    kept.push(value ?? 0);
    if (kept.length > KEPT_S) kept.shift();
    const top = Math.max(1e-9, ...kept);
    const points = kept.map((each, index) => `${(148 * (index + KEPT_S - kept.length)) / (KEPT_S - 1)} ${28 - (26 * each) / top}`);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
    document.querySelector(`[data-spark="${key}"]`).replaceChildren(path);
    const row = [words, shown[key](Math.min(...kept)), shown[key](Math.max(...kept))];
    document.querySelectorAll(`[data-figure="${key}"]`).forEach((cell, index) => {
      cell.textContent = row[index];
    });
  };

  // What was counted in the last seconds; a counter that fell is a new engine's.
  const since = (seconds) => history.find((each) => each.at >= history.at(-1).at - seconds);
  const grown = (name, seconds) => Math.max(0, history.at(-1)[name] - since(seconds)[name]);

  const draw = () => {
    const now = history.at(-1);
    const total = { running: 0, waiting: 0, rate: 0 };
    for (const [address, { row, tokens }] of apps) {
      tokens.push([now.at, row[4]]);
      while (tokens.length > 2 && tokens[1][0] <= now.at - RATE_S) tokens.shift();
      const passed = now.at - tokens[0][0];
      const rate = passed > 0 ? Math.max(0, row[4] - tokens[0][1]) / passed : 0;
      total.running += row[2];
      total.waiting += row[3];
      total.rate += rate;
      const words = [whole(row[2]), whole(row[3]), number(rate), time(row[8]), time(row[9]), percent(share(row[6], row[7])), whole(row[5])];
      cells.get(address)?.forEach((cell, index) => {
        cell.textContent = words[index];
      });
    }
    const steps = grown("steps", RATE_S);
    show("tokens", total.rate);
    show("running", total.running);
    show("waiting", total.waiting);
    show("rows", steps ? grown("rows", RATE_S) / steps : null);
    show("chains", steps ? grown("chains", RATE_S) / steps : null);
    show("kv", share(now.held, now.pages));
    show("cached", share(now.cached, now.pages));
    show("evicted", grown("evicted", KEPT_S));
    show("preemptions", grown("preemptions", KEPT_S));
    show("sides", grown("side_loads", KEPT_S));
  };

  const say = (words) => {
    if (state.textContent !== words) state.textContent = words;
  };
  const take = (event) => {
    const { apps: changed, ...counts } = JSON.parse(event.data);
    for (const row of changed) {
      const address = printable(`${row[0]}/${row[1]}`);
      const known = apps.get(address);
      if (known) known.row = row;
      else apps.set(address, { row, tokens: [] });
    }
    history.push(counts);
    while (history[0].at < counts.at - KEPT_S) history.shift();
    draw();
    say(counts.state === "ready" ? "The server answers." : `The engine is ${counts.state}.`);
  };

  let source = null;
  let timer = null;
  const close = () => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  const later = (words) => {
    close();
    say(`${words} Trying again.`);
    timer = setTimeout(open, AGAIN_MS);
  };
  const open = () => {
    close();
    source = new EventSource("ui/events");
    source.addEventListener("open", () => {
      history = [];
      apps = new Map();
      lines = {};
    });
    source.addEventListener("message", take);
    source.addEventListener("end", () => later("The server is ending."));
    source.addEventListener("error", () => {
      if (source?.readyState === EventSource.CLOSED) later("No figures: the server sends none.");
      else say("No figures: the connection was lost. Trying again.");
    });
  };
  // A page that nobody looks at costs nothing.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  if (!document.hidden) open();
})();
