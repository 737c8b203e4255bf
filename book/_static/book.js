/* What the theme leaves out of the keyboard's and the screen reader's reach, on every page. */
(() => {
  /* Whatever scrolls sideways can be scrolled by key: tables, code, long equations. */
  const reach = new ResizeObserver((entries) => entries.forEach(({ target: box }) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; else box.removeAttribute("tabindex");
  }));
  addEventListener("load", () => document.querySelectorAll(".bd-article :is(table, pre, mjx-container[display='true'])")
    .forEach((box) => reach.observe(box)));
  document.querySelector(".bd-sidebar-primary")?.setAttribute("role", "complementary");
  document.querySelector(".bd-sidebar-primary")?.setAttribute("aria-label", "The book");
})();
