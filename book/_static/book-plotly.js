/* Draws every figure of the page from its inline JSON, with the site's own plotly.js, when it nears the window. */
(() => {
  const me = document.currentScript, MIME = "application/vnd.plotly.v1+json";
  const loading = {};
  /* Scripts, unlike fetch(), also load on a page opened from file://. */
  const load = (path) => loading[path] ||= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = new URL(path, me.src).href;
    script.onload = done;
    script.onerror = () => { delete loading[path]; failed(new Error(`could not load ${path}`)); };
    document.head.append(script);
  });

  const draw = async (div) => {
    const tag = div.querySelector(`script[type="${MIME}"]`);
    if (!tag) return;
    const figure = JSON.parse(tag.textContent);
    tag.remove();
    await load(me.dataset.bundle);
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove:
      ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"], ...figure.config };
    await Plotly.newPlot(div, figure.data || [], figure.layout || {}, config);
    if (figure.frames && figure.frames.length) await Plotly.addFrames(div, figure.frames);
    if (figure.layout?.meta?.controls) addControls(div, figure.layout.meta);
  };

  /* One byte a value, as talking_heads_utils.figures.page.quantise packs it. */
  const unpack = ({ q8, max, shape: [held, columns], rows }) => {
    const bytes = Uint8Array.from(atob(q8), (c) => c.charCodeAt(0)), none = new Array(columns).fill(null);
    return Array.from({ length: rows }, (_, r) => r >= held ? none : Array.from(
      bytes.subarray(r * columns, (r + 1) * columns), (b) => b === 255 ? null : max * (b / 254) ** 2));
  };
  const unpackTrace = (trace) => Object.fromEntries(
    Object.entries(trace).map(([key, value]) => [key, value && value.q8 ? unpack(value) : value]));

  /* layout.meta.controls: a menu each; layout.meta.frames: the folder with what every setting draws, a file for
     each value of the first menu. */
  const addControls = (div, { controls, frames }) => {
    const bar = document.createElement("div"), status = document.createElement("span");
    bar.className = "figure-controls";
    status.setAttribute("role", "status");
    const menus = controls.map(({ name, values, labels, start }) => {
      const label = document.createElement("label"), menu = document.createElement("select");
      values.forEach((value, i) => menu.add(new Option((labels || values)[i], value, value === start, value === start)));
      label.append(name, " ", menu);
      bar.append(label);
      return menu;
    });
    const update = async () => {
      const [first, ...rest] = menus.map((menu) => menu.value), key = `${frames}/${first}`;
      try {
        status.textContent = window.bookFrames?.[key] ? "" : "loading …";
        await load(`frames/${key}.js`);
        if (first !== menus[0].value || rest.some((value, i) => value !== menus[i + 1].value)) return;
        const frame = window.bookFrames[key][rest.join("|")];
        await Plotly.animate(div, [{ ...frame, data: frame.data.map(unpackTrace), traces: frame.data.map((_, i) => i) }],
          { mode: "immediate", transition: { duration: 0 }, frame: { duration: 0, redraw: true } });
        await Plotly.relayout(div, { "xaxis.autorange": true, "yaxis.autorange": true });
        status.textContent = "";
      } catch (error) {
        status.textContent = `${error.message}: is the site whole?`;
      }
    };
    menus.forEach((menu) => menu.addEventListener("change", update));
    bar.append(status);
    div.before(bar);
  };

  const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
  }), { rootMargin: "600px" });
  document.querySelectorAll(`.plotly-graph-div > script[type="${MIME}"]`).forEach((tag) => near.observe(tag.parentElement));
})();
