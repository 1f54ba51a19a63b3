(function () {
  "use strict";
  // Draws the heat maps. Names in the data are escaped for plotly already; colours come from the style sheet.
  const drawings = JSON.parse(document.getElementById("figures").textContent);
  const choice = document.getElementById("measure");
  const options = { displayModeBar: false, responsive: true, showTips: false };
  const read = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const scale = (name) => read(name).split(/\s*,\s*/).map((colour, at, all) => [at / (all.length - 1), colour]);
  const figure = (cell) => (typeof cell === "number" ? String(+cell.toPrecision(6)) : cell === null ? "-" : cell);

  function measureOf(drawing) {
    return drawing.measures.find((one) => choice && one.name === choice.value) || drawing.measures[0];
  }

  // An infinite figure is drawn as the highest there is; its text says what it is.
  function drawable(cell, high) {
    return cell === "inf" ? high : typeof cell === "number" ? cell : null;
  }

  function hover(drawing, row, column) {
    const lines = ["layer " + drawing.layers[row], drawing.matrices[column]];
    if (drawing.givers) lines.push("from " + drawing.givers[row][column]);
    for (const one of drawing.measures) lines.push(one.title + ": " + figure(one.rows[row][column]));
    return lines.join("<br>");
  }

  const pen = document.createElement("canvas").getContext("2d");
  function lengthOf(label, font) {
    pen.font = font.size + "px " + font.family;
    return pen.measureText(label).width;
  }

  function ticks(texts, room, pitch) {
    const step = Math.max(1, Math.ceil((texts.length * pitch) / Math.max(room, 1)));
    const places = texts.map((_, at) => at).filter((at) => at % step === 0);
    return { tickmode: "array", tickvals: places, ticktext: places.map((at) => texts[at]) };
  }

  function draw(id, drawing) {
    const place = document.getElementById(id);
    const measure = measureOf(drawing);
    const rows = drawing.layers.length;
    const font = { family: getComputedStyle(document.body).fontFamily, size: 11, color: read("soft") };
    const cell = Math.min(20, Math.max(7, 480 / rows));
    const longest = Math.max(...drawing.labels.map((label) => lengthOf(label, font)));
    const margin = { l: 34, r: 4, t: 30, b: 0 };
    const room = place.clientWidth - margin.l - margin.r;
    const level = longest + 10 < room / drawing.labels.length; // there is room for the labels side by side
    margin.b = level ? 24 : 10 + Math.ceil(longest);
    const trace = Object.assign({}, drawing.figure.data[0], {
      z: measure.rows.map((row) => row.map((one) => drawable(one, measure.high))),
      text: measure.rows.map((row, at) => row.map((_, column) => hover(drawing, at, column))),
      zmin: measure.low,
      zmax: measure.high,
      colorscale: scale(measure.shade),
      colorbar: Object.assign({}, drawing.figure.data[0].colorbar, {
        tickfont: font, outlinewidth: 0, ticks: "", bgcolor: "rgba(0,0,0,0)", exponentformat: "power",
      }),
    });
    const traces = [trace];
    if (drawing.givers) {
      // what lang has no share in, such as a layer of the base: one colour, under the shares
      const z = drawing.givers.map((row, at) => row.map((giver, n) => (giver !== null && measure.rows[at][n] === null ? 1 : null)));
      if (z.some((row) => row.some((one) => one !== null))) {
        traces.push(Object.assign({}, trace, { z: z, zmin: 0, zmax: 1, showscale: false, colorscale: [[0, read("base")], [1, read("base")]] }));
      }
    }
    const axis = { showgrid: false, zeroline: false, showline: false, ticks: "outside", ticklen: 4, tickcolor: "rgba(0,0,0,0)", tickfont: font, fixedrange: true, automargin: false };
    const layout = Object.assign({}, drawing.figure.layout, {
      height: Math.round(margin.t + margin.b + rows * cell),
      margin: margin,
      font: font,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: read("chip"), bordercolor: read("line"), font: Object.assign({}, font, { size: 12, color: read("ink") }), align: "left" },
      xaxis: Object.assign({}, axis, ticks(drawing.labels, room, level ? 0 : 13), { tickangle: level ? 0 : -90, range: [-0.5, drawing.labels.length - 0.5] }),
      yaxis: Object.assign({}, axis, ticks(drawing.layers.map(String), rows * cell, 14), { range: [-0.5, rows - 0.5] }),
    });
    return Plotly.react(place, traces, layout, options);
  }

  function drawAll() {
    const shown = Object.entries(drawings).filter(([id]) => document.getElementById(id));
    return Promise.all(shown.map(([id, drawing]) => draw(id, drawing)));
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  if (choice) choice.addEventListener("change", drawAll);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) drawAll(); // tick labels depend on the room
    width = innerWidth;
  });
  drawAll().then(() => document.documentElement.setAttribute("data-drawn", "yes"));
})();
