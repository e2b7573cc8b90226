"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const root = document.documentElement;
  const inTheDark = JSON.parse(document.getElementById("in-the-dark").textContent);
  // A printed page has room for so many pixels.
  const PRINTED = 660;
  // Of a figure's own width.
  const NARROWEST = 0.62;
  // Of a card, at most.
  const PADDING = 18;

  // A library stands in the page as text, and runs when it is first needed: a page with many figures opens at once.
  const need = (name) => {
    const kept = document.getElementById(name);
    if (kept.type === "text/javascript") return;
    const script = document.createElement("script");
    script.textContent = kept.textContent;
    script.id = name;
    script.type = "text/javascript";
    kept.replaceWith(script);
  };

  // Figures ------------------------------------------------------------------------------------------------------------
  const parsed = new Map();
  const sourceOf = (place) => {
    if (!parsed.has(place)) parsed.set(place, JSON.parse(place.querySelector("script").textContent));
    return parsed.get(place);
  };
  // As they should be now: drawn, in these colours, in this room.
  const upToDate = new Set();
  let printing = false;

  const isDark = () => {
    const chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };

  // Colours only: a word of the data may be the name of one.
  const recoloured = (value, key = "") => {
    if (typeof value === "string") return /color$/.test(key) && Object.hasOwn(inTheDark, value) ? inTheDark[value] : value;
    if (Array.isArray(value)) return value.map((one) => (one && typeof one === "object" ? recoloured(one, key) : one));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, recoloured(one, name)]));
  };

  const drawPlot = (place) => {
    need("plotly");
    // Plotly writes into what it is given.
    let { data, layout } = structuredClone(sourceOf(place));
    if (isDark() && !printing) ({ data, layout } = recoloured({ data, layout }));
    const room = printing ? PRINTED : place.closest(".card").clientWidth - 2 * PADDING;
    // What is too wide even so is scrolled.
    layout.width = Math.round(Math.min(layout.width, Math.max(room, NARROWEST * layout.width)));
    place.style.width = `${layout.width}px`;
    // The first of these marks says how long the page took to open.
    Plotly.react(place, data, layout, { displaylogo: false, showTips: false }).then(() => performance.mark("figure drawn"));
  };

  const drawView = (place) => {
    need("circuitsvis");
    if (parsed.has(place)) return;
    const inner = place.appendChild(document.createElement("div"));
    inner.id = `view-${parsed.size}`;
    CircuitsVis.render(inner.id, CircuitsVis[place.dataset.element], sourceOf(place));
  };

  const draw = (place) => {
    upToDate.add(place);
    if (place.matches(".plot")) drawPlot(place);
    else drawView(place);
  };

  const observer = new IntersectionObserver(
    (entries) =>
      entries
        .filter((entry) => entry.isIntersecting)
        .forEach(({ target }) => {
          observer.unobserve(target);
          // Each on its own, so that the page can be read and scrolled meanwhile.
          setTimeout(() => upToDate.has(target) || draw(target));
        }),
    { rootMargin: "300px" },
  );
  all(".plot, .view").forEach((place) => observer.observe(place));
  // Plotly takes a second to get ready; better while the first table is read than when the first figure is wanted. And
  // CircuitsVis draws when it likes, which is too late for a page that is being printed.
  const whenIdle = window.requestIdleCallback ?? setTimeout;
  const prepare = [
    ...(document.getElementById("plotly") ? [() => need("plotly")] : []),
    ...all(".view").map((place) => () => upToDate.has(place) || draw(place)),
  ];
  const prepareNext = () => {
    if (prepare.length) whenIdle(() => { prepare.shift()(); prepareNext(); });
  };
  addEventListener("load", prepareNext);

  // What is far away, or hidden in a tab, waits until it is seen again.
  const redraw = () => {
    upToDate.forEach((place) => observer.observe(place));
    upToDate.clear();
  };

  let resized;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (printing || innerWidth === width) return;
    width = innerWidth;
    clearTimeout(resized);
    resized = setTimeout(redraw, 150);
  });

  // Light and dark -----------------------------------------------------------------------------------------------------
  const theme = document.getElementById("theme");
  const showTheme = () => theme.setAttribute("aria-pressed", isDark());
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    showTheme();
    if (!printing) redraw();
  });
  showTheme();

  // Tabs ---------------------------------------------------------------------------------------------------------------
  const choose = (tab) =>
    all("[role=tab]", tab.parentElement).forEach((other) => {
      const chosen = other === tab;
      other.setAttribute("aria-selected", chosen);
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    });
  all("[role=tablist]").forEach((list) => {
    const tabs = all("[role=tab]", list);
    list.addEventListener("click", (event) => {
      const tab = event.target.closest("[role=tab]");
      if (tab) choose(tab);
    });
    list.addEventListener("keydown", (event) => {
      const at = tabs.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      const tab = tabs.at(to % tabs.length);
      choose(tab);
      tab.focus();
    });
  });

  // Sorting: first up, then down ---------------------------------------------------------------------------------------
  const key = (row, column) => {
    const cell = row.cells[column];
    return "number" in cell.dataset ? Number(cell.dataset.number) : cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, undefined, { numeric: true });
  };
  all("th button").forEach((button) =>
    button.addEventListener("click", () => {
      const heading = button.parentElement;
      const body = heading.closest("table").tBodies[0];
      const up = heading.getAttribute("aria-sort") !== "ascending";
      all("th", heading.parentElement).forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = [...body.rows].map((row) => [key(row, heading.cellIndex), row]);
      // What is empty stays below, whichever way.
      const empty = keyed.filter(([value]) => value === "");
      const full = keyed.filter(([value]) => value !== "").sort(([a], [b]) => (up ? compare(a, b) : compare(b, a)));
      body.append(...full.concat(empty).map(([, row]) => row));
    }),
  );

  // Filter: every word must be there -----------------------------------------------------------------------------------
  const find = document.getElementById("find");
  const rows = all(".runs tbody tr").map((row) => [row, row.textContent.toLowerCase()]);
  const cards = all("[data-findable]").map((card) => [
    card,
    all("h3, .note, [role=tab], td", card).map((one) => one.textContent).join(" ").toLowerCase(),
  ]);
  const kept = (items, words) =>
    items.filter(([item, text]) => {
      const has = words.every((word) => text.includes(word));
      item.hidden = !has;
      return has;
    }).length;
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const counts = [[rows, "runs"], [cards, "figures and tables"]]
      .filter(([items]) => items.length)
      .map(([items, what]) => `${kept(items, words)} of ${items.length} ${what}`);
    document.getElementById("found").textContent = words.length ? counts.join(", ") : "";
    all("nav li li a").forEach((link) => {
      link.parentElement.hidden = document.getElementById(link.hash.slice(1)).hidden;
    });
  });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.matches("input")) {
      event.preventDefault();
      find.focus();
    }
  });

  // Where one is -------------------------------------------------------------------------------------------------------
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const places = new IntersectionObserver(
    (entries) =>
      entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(target.id).setAttribute("aria-current", "true");
      }),
    { rootMargin: "-20% 0px -70% 0px" },
  );
  links.forEach((link, id) => places.observe(document.getElementById(id)));

  // Print: everything is open, drawn, in light colours and not too wide ------------------------------------------------
  let opened = [];
  let shut = [];
  addEventListener("beforeprint", () => {
    printing = true;
    opened = all("details:not([open])");
    opened.forEach((one) => { one.open = true; });
    shut = all(".panel[hidden]");
    shut.forEach((panel) => { panel.hidden = false; });
    all(".plot, .view").forEach(draw);
  });
  addEventListener("afterprint", () => {
    printing = false;
    opened.forEach((one) => { one.open = false; });
    shut.forEach((panel) => { panel.hidden = true; });
    redraw();
  });
})();
