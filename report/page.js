// All works without this: a link to something in a closed class opens it in today's browsers. Here are older ones,
// and a second click on the same link; and classes are found by a part of their names.
const classes = [...document.querySelectorAll("details.class")];
function show() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const closed = target && target.closest("details");
  if (!closed) return;
  closed.hidden = false;
  closed.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", show);
addEventListener("click", (event) => {
  const link = event.target.closest("a");
  const hash = link && (link.getAttribute("href") || "");
  if (hash && hash === location.hash) setTimeout(show);
});
const filter = document.querySelector(".filter");
if (filter) {
  filter.hidden = false;
  filter.querySelector("input").addEventListener("input", (event) => {
    const part = event.target.value.trim().toLowerCase();
    for (const one of classes) one.hidden = !one.querySelector("summary span").textContent.toLowerCase().includes(part);
  });
  filter.querySelector("button").addEventListener("click", (event) => {
    const open = event.target.textContent === "open all";
    for (const one of classes) one.open = open && !one.hidden;
    event.target.textContent = open ? "close all" : "open all";
  });
}
show();
