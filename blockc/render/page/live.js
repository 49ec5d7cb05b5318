// Live figures from the server's Prometheus text; does nothing in a page that no server sent.
(() => {
  const state = document.getElementById("live-state");
  if (!state || !location.protocol.startsWith("http")) {
    if (state) state.textContent = "This copy of the page came from no server: there are no live figures in it.";
    return;
  }
  const EVERY_MS = 2000;
  const KEPT = 31; // samples: a minute
  const rows = new Map();
  document.querySelectorAll("#live-apps [data-app]").forEach((row) => {
    const [tenant, app] = blockc.apps[Number(row.dataset.app)];
    rows.set(`${tenant}/${app}`, [...row.querySelectorAll("td")]);
  });
  const history = []; // [{at, samples}], oldest first
  const lines = {}; // values of each tile

  // Names as the page shows them: what cannot be seen is an escape there, too.
  const printable = (text) =>
    text.replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, (char) => {
      const code = char.codePointAt(0);
      const short = { 9: "\\t", 10: "\\n", 13: "\\r" }[code];
      if (short) return short;
      if (code < 256) return `\\x${code.toString(16).padStart(2, "0")}`;
      return code < 65536 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
    });

  const parse = (text) => {
    const samples = [];
    for (const line of text.split("\n")) {
      const found = /^blockc:(\w+)(?:\{(.*)\})? (\S+)$/s.exec(line);
      if (!found) continue;
      const labels = {};
      for (const [, name, value] of (found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/gs)) {
        labels[name] = value.replace(/\\(.)/gs, (_, char) => (char === "n" ? "\n" : char));
      }
      const app = labels.app === undefined ? "" : printable(`${labels.tenant}/${labels.app}`);
      samples.push({ name: found[1], app, labels, value: Number(found[3]) });
    }
    return samples;
  };

  const sum = (samples, name, app) => {
    let total = 0;
    for (const sample of samples) if (sample.name === name && (app === undefined || sample.app === app)) total += sample.value;
    return total;
  };
  const grown = (name, app) => sum(history.at(-1).samples, name, app) - sum(history[0].samples, name, app);
  const seconds = () => (history.at(-1).at - history[0].at) / 1000;

  // A quantile of what came into a histogram while this page looked on, by linear interpolation in its bucket.
  const quantile = (name, app, share) => {
    const counts = new Map();
    for (const [sign, entry] of [[1, history.at(-1)], [-1, history[0]]]) {
      for (const sample of entry.samples) {
        if (sample.name !== `${name}_bucket` || sample.app !== app) continue;
        const limit = sample.labels.le === "+Inf" ? Infinity : Number(sample.labels.le);
        counts.set(limit, (counts.get(limit) ?? 0) + sign * sample.value);
      }
    }
    const limits = [...counts.keys()].sort((one, two) => one - two);
    const total = counts.get(Infinity) ?? 0;
    if (!total) return null;
    let below = 0;
    let count = 0;
    for (const limit of limits) {
      if (counts.get(limit) >= share * total) {
        if (limit === Infinity) return below;
        return below + ((limit - below) * (share * total - count)) / (counts.get(limit) - count || 1);
      }
      [below, count] = [limit, counts.get(limit)];
    }
    return below;
  };

  const number = (value, digits = 1) => (value === null || !Number.isFinite(value) ? "-" : value.toFixed(value >= 100 ? 0 : digits));
  const time = (value) => (value === null ? "-" : value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`);
  const share = (part, whole) => {
    if (!(whole > 0)) return "-";
    const percent = (100 * part) / whole;
    return `${percent.toFixed(percent > 0 && percent < 10 ? 1 : 0)} %`;
  };

  const tile = (key, value, words) => {
    document.querySelector(`[data-live="${key}"]`).textContent = words;
    const kept = (lines[key] ??= []);
    kept.push(value);
    if (kept.length > KEPT) kept.shift();
    const most = Math.max(1e-9, ...kept);
    const points = kept.map((each, index) => `${(148 * (index + KEPT - kept.length)) / (KEPT - 1)} ${28 - (26 * each) / most}`);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
    document.querySelector(`[data-spark="${key}"]`).replaceChildren(path);
  };

  const draw = () => {
    const now = history.at(-1).samples;
    const passed = seconds();
    const rate = (name, app) => (passed > 0 ? grown(name, app) / passed : 0);
    const steps = grown("step_rows_count");
    const perStep = (name) => (steps > 0 ? grown(name) / steps : 0);
    const [running, waiting] = [sum(now, "num_requests_running"), sum(now, "num_requests_waiting")];
    const [total, free] = [sum(now, "kv_pages"), sum(now, "kv_pages_free")];
    tile("tokens", rate("generation_tokens_total"), number(rate("generation_tokens_total")));
    tile("running", running, number(running, 0));
    tile("waiting", waiting, number(waiting, 0));
    tile("rows", perStep("step_rows_sum"), steps > 0 ? number(perStep("step_rows_sum")) : "-");
    tile("chains", perStep("step_chains_sum"), steps > 0 ? number(perStep("step_chains_sum")) : "-");
    tile("kv", total - free, total ? share(total - free, total) : "-");
    for (const [app, cells] of rows) {
      const words = [
        number(sum(now, "num_requests_running", app), 0),
        number(sum(now, "num_requests_waiting", app), 0),
        number(rate("generation_tokens_total", app)),
        time(quantile("time_to_first_token_seconds", app, 0.5)),
        time(quantile("time_to_first_token_seconds", app, 0.95)),
        share(sum(now, "prefix_cache_hits_total", app), sum(now, "prefix_cache_queries_total", app)),
        number(sum(now, "request_success_total", app), 0),
      ];
      words.forEach((word, index) => {
        cells[index].textContent = word;
      });
    }
  };

  const say = (words) => {
    if (state.textContent !== words) state.textContent = words;
  };
  const look = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch("metrics", { cache: "no-store" });
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      history.push({ at: performance.now(), samples: parse(await answer.text()) });
      if (history.length > KEPT) history.shift();
      draw();
      say("The server answers.");
    } catch (error) {
      say(`No figures: ${error.message}. Trying again.`);
    }
  };
  look();
  setInterval(look, EVERY_MS);
})();
