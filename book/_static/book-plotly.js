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
  /* A part of plotly.js draws what is flat. Once the whole is asked for, it takes the part's place, never the reverse. */
  const { bundle, whole } = me.dataset;
  const plotly = (all) => (all ? loading[bundle]?.then(() => load(whole)) ?? load(whole) : load(loading[whole] ? whole : bundle));

  const draw = async (div) => {
    const tag = div.querySelector(`script[type="${MIME}"]`);
    if (!tag) return;
    const figure = JSON.parse(tag.textContent);
    tag.remove();
    await plotly(div.matches("[data-whole]"));
    const config = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove:
      ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"], ...figure.config };
    const layout = figure.layout || {}, own = takeControls(layout);
    await Plotly.newPlot(div, figure.data || [], { ...layout, ...themed(layout) }, config);
    div.querySelectorAll(".main-svg").forEach((svg) => svg.setAttribute("aria-hidden", "true")); // the label says it
    if (figure.frames && figure.frames.length) await Plotly.addFrames(div, figure.frames);
    await roomy(div);
    if (own.length) controlBar(div).append(...own.map((control) => control(div)));
  };

  /* Where a legend takes its lines from the plot, as on a phone, the figure grows by what the plot lacks. */
  const roomy = (div) => {
    const { height, _size: { h } } = div._fullLayout, lacks = Math.ceil(Math.min(0.55 * height, 230) - h);
    if (lacks <= 0) return;
    div.style.height = `${height + lacks}px`;
    return Plotly.relayout(div, { height: height + lacks });
  };

  /* What of a layout the page's theme decides: text, also in 3D, and what plotly else draws in its own dark grey. */
  const themed = ({ font, template, modebar }) => {
    const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(`--pst-color-${name}`).trim();
    const ink = colour("text-base"), rim = { marker: { line: { color: colour("text-muted"), width: 1 } } };
    return {
      font: { ...font, color: ink },
      modebar: { ...modebar, bgcolor: "rgba(0,0,0,0)", color: colour("text-muted"), activecolor: ink },
      template: { ...template, data: { ...template?.data, bar: [{ error_y: { color: ink } }], scatter3d: [rim] } },
    };
  };
  new MutationObserver(() => document.querySelectorAll(".js-plotly-plot").forEach((div) => {
    if (div._fullLayout) Plotly.relayout(div, themed(div.layout));
  })).observe(document.documentElement, { attributeFilter: ["data-theme"] });

  /* Plotly's own menus and sliders answer to no key: the page's take their place. Each is a function of the figure. */
  const takeControls = (layout) => {
    const { updatemenus = [], sliders = [], margin } = layout;
    delete layout.updatemenus;
    delete layout.sliders;
    if (updatemenus.length) layout.margin = { ...margin, t: Math.max(36, (margin?.t ?? 36) - 34) };
    if (sliders.length) layout.legend = { ...layout.legend, yref: "container", y: 0, yanchor: "bottom" };
    return [...updatemenus.map(menu), ...sliders.map(range)];
  };
  const apply = (div, { method, args }) => Plotly[method](div, ...JSON.parse(JSON.stringify(args)))
    .catch(() => {}); // a step that the next one interrupts
  const menu = ({ buttons, active = 0 }) => (div) => {
    const label = document.createElement("label"), select = document.createElement("select");
    buttons.forEach((button, i) => select.add(new Option(button.label, i, i === active, i === active)));
    select.addEventListener("change", () => apply(div, buttons[select.value]));
    label.append("Show ", select);
    return label;
  };
  const range = ({ steps, active = 0, currentvalue }) => (div) => {
    const label = document.createElement("label"), input = document.createElement("input"), value = document.createElement("output");
    const tell = () => {
      value.textContent = steps[input.value].label;
      input.setAttribute("aria-valuetext", value.textContent);
    };
    Object.assign(input, { type: "range", min: 0, max: steps.length - 1, step: 1, value: active });
    input.addEventListener("input", () => { tell(); apply(div, steps[input.value]); });
    tell();
    label.append((currentvalue?.prefix ?? "").replace(/:?\s*$/, " "), input, " ", value);
    return label;
  };
  const controlBar = (div) => {
    const bar = document.createElement("div");
    bar.className = "figure-controls";
    div.before(bar);
    return bar;
  };

  /* A fold has its figures drawn before it opens, when its own line nears the window. */
  const waiting = (inside = document) => [...inside.querySelectorAll(`.plotly-graph-div > script[type="${MIME}"]`)].map((tag) => tag.parentElement);
  const near = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => {
    if (!isIntersecting) return;
    near.unobserve(target);
    (target.matches("details") ? waiting(target) : [target]).forEach(draw);
  }), { rootMargin: "600px" });
  const fold = (div) => [...document.querySelectorAll("details:not([open])")].find((details) => details.contains(div));
  waiting().forEach((div) => near.observe(fold(div) ?? div));
  addEventListener("toggle", ({ target }) => target.querySelectorAll(".js-plotly-plot").forEach((div) => Plotly.Plots.resize(div)), true);

  /* On paper all figures, as wide as a page. A browser does not wait there: plotly.js is loaded before it is asked. */
  const fit = (size) => document.querySelectorAll(".js-plotly-plot").forEach((div) => Plotly.relayout(div, size));
  addEventListener("load", () => (window.requestIdleCallback ?? setTimeout)(() => plotly(document.querySelector(".plotly-graph-div[data-whole]"))));
  addEventListener("beforeprint", () => {
    if (!window.Plotly) return;
    waiting().forEach((div) => { near.unobserve(div); draw(div); });
    queueMicrotask(() => fit({ width: 660, autosize: false }));
  });
  addEventListener("afterprint", () => { if (window.Plotly) fit({ width: null, autosize: true }); });
})();
