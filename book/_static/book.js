/* What the theme leaves out of the keyboard's and the screen reader's reach, on every page. */
(() => {
  /* Whatever scrolls sideways can be scrolled by key: tables, code, long equations. */
  const fade = (box) => box.classList.toggle("goes-on", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  const reach = new ResizeObserver((entries) => entries.forEach(({ target: box }) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; else box.removeAttribute("tabindex");
    fade(box);
  }));
  addEventListener("load", () => document.querySelectorAll(".bd-article :is(table, pre, mjx-container[display='true'])")
    .forEach((box) => {
      reach.observe(box);
      box.addEventListener("scroll", () => fade(box), { passive: true });
    }));
  /* A table's rows are told by names that stay on one line, hyphens and all; sentences get the width of some words. */
  document.querySelectorAll(".cell_output tbody :is(td, th)").forEach((cell) => {
    const text = cell.textContent.trim();
    cell.classList.toggle("name", cell === cell.parentElement.firstElementChild && !text.includes(" "));
    cell.classList.toggle("words", text.length > 20);
    cell.classList.toggle("sentence", text.length > 40);
  });
  /* Glossary terms: the entry beside its link, for pointer and keys alike; it stays while pointed at, Escape closes it. */
  const tip = document.createElement("div");
  let closing;
  tip.id = "term-tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  const open = (link) => {
    clearTimeout(closing);
    tip.textContent = link.dataset.entry;
    tip.hidden = false;
    const at = link.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8)) + scrollX}px`;
    tip.style.top = `${at.bottom + scrollY + 4}px`;
  };
  const close = () => { closing = setTimeout(() => { tip.hidden = true; }, 150); };
  const terms = document.querySelectorAll("a.term[title]");
  terms.forEach((link) => {
    link.dataset.entry = link.title;
    link.removeAttribute("title");
    link.setAttribute("aria-describedby", tip.id);
    for (const event of ["mouseenter", "focus"]) link.addEventListener(event, () => open(link));
    for (const event of ["mouseleave", "blur"]) link.addEventListener(event, close);
  });
  tip.addEventListener("mouseenter", () => clearTimeout(closing));
  tip.addEventListener("mouseleave", close);
  addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  if (terms.length) document.body.append(tip);

  /* An address that leads into a fold, or to one, opens it. */
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let fold = target?.closest?.("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    if (target?.closest?.("details")) target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  unfold();

  /* On paper: in the light, what is folded open. Afterwards all as it was. */
  const folded = [], theme = document.documentElement.dataset;
  let before;
  addEventListener("beforeprint", () => {
    before = theme.theme;
    theme.theme = "light";
    folded.push(...document.querySelectorAll("article details:not([open], .figure-links details)"));
    folded.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => {
    theme.theme = before;
    folded.splice(0).forEach((details) => { details.open = false; });
  });

  document.querySelector(".bd-sidebar-primary")?.setAttribute("role", "complementary");
  document.querySelector(".bd-sidebar-primary")?.setAttribute("aria-label", "The book");
})();
