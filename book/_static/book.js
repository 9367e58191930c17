// What is wider than the page says so: the edge beyond which it goes on fades, until it is scrolled there.
document.addEventListener("DOMContentLoaded", () => {
  const wide = [
    'mjx-container[display="true"]', ".pst-scrollable-table-container", ".cell_output table", ".companion-wide", "pre",
  ].map((each) => `.bd-article ${each}`).join(", ");

  function mark(box) {
    const rest = box.scrollWidth - box.clientWidth;
    box.classList.toggle("goes-on-left", rest > 2 && box.scrollLeft > 2);
    box.classList.toggle("goes-on-right", rest > 2 && box.scrollLeft < rest - 2);
  }

  function markAll() {
    document.querySelectorAll(wide).forEach((box) => {
      mark(box);
      if (box.dataset.watched) return;
      box.dataset.watched = "yes";
      box.addEventListener("scroll", () => mark(box), { passive: true });
    });
  }

  new ResizeObserver(markAll).observe(document.querySelector(".bd-article") || document.body);
  window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(markAll));
});
