// The live page: asks for what has changed and puts it into the page, so that zoom, hidden curves
// and focus stay. The server says with a tag whether anything has changed.
(() => {
  "use strict";
  const EVERY_MS = 1500;
  const HIDDEN_MS = 10000;
  const link = document.getElementById("link");
  let tag = "";

  const titleOf = (figure) => figure.querySelector("h3").textContent;
  const figuresOf = (root) => [...root.querySelectorAll("figure[data-chart]")];
  const tell = (figure) => figure.dispatchEvent(new CustomEvent("fsdtrain:chart", { bubbles: true }));

  // The chart that is there gets the fresh one's data; one with other curves is replaced.
  function renew(old, fresh) {
    const [from, to] = [fresh, old].map((figure) => figure.querySelector("script"));
    if (from.textContent === to.textContent) return old;
    const [names, known] = [fresh, old].map((figure) => [...figure.querySelectorAll("[data-traces]")]);
    const key = (button) => button.firstElementChild.nextSibling.textContent.trim();
    if (names.map(key).join() !== known.map(key).join()) return fresh;
    to.textContent = from.textContent;
    names.forEach((button, number) => {
      known[number].dataset.traces = button.dataset.traces;
      const [value, shown] = [button, known[number]].map((one) => one.querySelector("b"));
      if (value && shown) shown.textContent = value.textContent;
    });
    const plot = old.querySelector(".plot");
    plot.setAttribute("aria-label", fresh.querySelector(".plot").getAttribute("aria-label"));
    tell(old);
    return old;
  }

  function mergeCurves(old, fresh) {
    const known = new Map(figuresOf(old).map((figure) => [titleOf(figure), figure]));
    const wanted = figuresOf(fresh);
    const isSame = wanted.length === known.size && wanted.every((figure) => known.has(titleOf(figure)));
    const added = [];
    wanted.forEach((figure) => {
      const there = known.get(titleOf(figure));
      const kept = there ? renew(there, figure) : figure;
      if (kept === figure) added.push(figure);
      if (isSame && there && kept === figure) there.replaceWith(figure);
      if (!isSame && kept !== figure) figure.replaceWith(kept);
    });
    if (!isSame) old.replaceChildren(...fresh.childNodes);
    added.forEach(tell);
  }

  function merge(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    fresh.querySelectorAll("[data-part]").forEach((part) => {
      const old = document.querySelector(`[data-part=${part.dataset.part}]`);
      if (part.dataset.part === "curves") mergeCurves(old, part);
      else if (old.innerHTML !== part.innerHTML) old.replaceChildren(...part.childNodes);
    });
    showAge();
  }

  function showAge() {
    const time = document.querySelector("[data-part=now] time");
    if (!time) return;
    const seconds = Math.max(0, Math.round((Date.now() - new Date(time.dateTime)) / 1000));
    time.textContent = seconds < 90 ? `${seconds} s ago` : `${Math.round(seconds / 60)} min ago`;
  }

  function say(text, isLost) {
    if (link.textContent !== text) link.textContent = text;
    link.classList.toggle("lost", isLost);
  }

  async function ask() {
    try {
      const answer = await fetch("/part", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag") || "";
        merge(await answer.text());
      } else if (answer.status !== 304) {
        throw new TypeError(`the server answers ${answer.status}`);
      }
      say("Connected: this page follows the run.", false);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      say("Connection lost: the page shows the last that it has read, and tries again.", true);
    }
    setTimeout(ask, document.hidden ? HIDDEN_MS : EVERY_MS);
  }

  setInterval(showAge, 1000);
  ask();
})();
