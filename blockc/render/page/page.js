"use strict";
// One view at a time, details of what is pointed at, arrow keys in pictures, one app followed through all of them.
// Text from the plan goes into the page as text only.
const blockc = (() => {
  const notes = JSON.parse(document.getElementById("notes").textContent);
  const apps = JSON.parse(document.getElementById("apps").textContent);
  const title = document.getElementById("note-title");
  const hint = document.getElementById("note-hint");
  const list = document.getElementById("note");
  const sections = [...document.querySelectorAll("main > section")];
  const links = [...document.querySelectorAll("nav a")];

  const view = () => {
    const wanted = location.hash.slice(1);
    const shown = sections.find((section) => section.id === wanted) ?? sections[0];
    for (const section of sections) section.hidden = section !== shown;
    document.body.classList.toggle("wide", !shown.querySelector(".pick"));
    for (const link of links) {
      if (link.hash === `#${shown.id}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  };

  const element = (name, words) => {
    const made = document.createElement(name);
    made.textContent = words;
    return made;
  };

  let marked = [];
  const show = (key) => {
    const note = notes[key];
    if (!note) return;
    title.textContent = note[0];
    hint.hidden = true;
    list.replaceChildren(
      ...note[1].map(([name, value]) => {
        const row = document.createElement("div");
        row.append(element("dt", name), element("dd", value));
        return row;
      }),
    );
    for (const other of marked) other.classList.remove("same");
    marked = [...document.querySelectorAll(`[data-key="${key}"].c`)];
    for (const other of marked) other.classList.add("same");
  };

  // In a picture one part has the Tab stop; arrows go to the nearest part in their direction.
  const centre = (part) => {
    const box = part.getBoundingClientRect();
    return part.classList.contains("hit") ? [box.left, box.top + box.height / 2] : [box.left + box.width / 2, box.top + Math.min(box.height / 2, 12)];
  };
  const towards = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const nearest = (parts, from, [dx, dy]) => {
    const [x, y] = centre(from);
    let best = null;
    let least = Infinity;
    for (const part of parts) {
      if (part === from) continue;
      const [px, py] = centre(part);
      const along = (px - x) * dx + (py - y) * dy;
      const across = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (along < 1) continue;
      const cost = along + 4 * across;
      if (cost < least) [best, least] = [part, cost];
    }
    return best;
  };

  const prepare = (picture) => {
    const parts = [...picture.querySelectorAll("[data-key]")];
    parts.forEach((part, index) => {
      const note = notes[part.dataset.key];
      part.setAttribute("tabindex", index === 0 ? "0" : "-1");
      part.setAttribute("role", "img");
      part.setAttribute("aria-label", note ? `${note[0]}: ${note[1].map((row) => row.join(" ")).join("; ")}` : "");
    });
    picture.addEventListener("pointerover", (event) => {
      if (event.target.dataset?.key) show(event.target.dataset.key);
    });
    picture.addEventListener("focusin", (event) => {
      if (event.target.dataset?.key) show(event.target.dataset.key);
    });
    picture.addEventListener("keydown", (event) => {
      const from = event.target;
      let to = null;
      if (towards[event.key]) to = nearest(parts, from, towards[event.key]);
      else if (event.key === "Home") to = parts[0];
      else if (event.key === "End") to = parts[parts.length - 1];
      else return;
      event.preventDefault();
      if (!to) return;
      from.setAttribute("tabindex", "-1");
      to.setAttribute("tabindex", "0");
      to.focus();
    });
  };

  const follow = (value) => {
    for (const part of document.querySelectorAll(".own")) part.classList.remove("own");
    document.body.classList.toggle("following", value !== "");
    if (value === "") return;
    const [, , keys] = apps[Number(value)];
    const own = new Set(keys);
    for (const part of document.querySelectorAll("[data-key]")) {
      if (own.has(part.dataset.key)) {
        part.classList.add("own");
        part.parentElement.closest(".lane")?.classList.add("own");
        // What is drawn on a part follows it: a hatch, the ground of its letter, its letter.
        let next = part.nextElementSibling;
        while (next && ["over", "under", "label"].some((name) => next.classList.contains(name))) {
          next.classList.add("own");
          next = next.nextElementSibling;
        }
      }
    }
    for (const dot of document.querySelectorAll("[data-of]")) dot.classList.toggle("own", own.has(dot.dataset.of));
    show(keys[0]);
  };

  document.body.classList.add("on");
  document.getElementById("inspector").hidden = false;
  const select = document.getElementById("follow");
  select.parentElement.hidden = apps.length < 2;
  select.addEventListener("change", () => follow(select.value));
  document.querySelectorAll("svg.pick").forEach(prepare);
  addEventListener("hashchange", view);
  view();
  return { apps };
})();
