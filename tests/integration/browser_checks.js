// What a reader of a report could not read: a list of texts, empty when all is well. The page's details are opened first.
() => {
  const problems = [];
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  const width = document.scrollingElement.scrollWidth;
  if (width > innerWidth) problems.push(`the page is ${width} pixels wide on a screen of ${innerWidth}`);
  const drawings = document.querySelectorAll("svg, img");
  if (!drawings.length) problems.push("nothing is drawn");
  for (const drawing of drawings) {
    const box = drawing.getBoundingClientRect();
    const marks = drawing.matches("img") ? drawing.naturalWidth : drawing.querySelectorAll("path, use").length;
    if (box.width < 150 || box.height < 60 || !marks) {
      problems.push(`${drawing.getAttribute("aria-label") || drawing.alt}: ${box.width} x ${box.height}, ${marks} marks`);
    }
    for (const word of drawing.querySelectorAll("text")) {
      const inside = word.getBoundingClientRect();
      if (inside.left < box.left - 3 || inside.right > box.right + 3) problems.push(`cut off: ${word.textContent}`);
    }
  }

  const channels = (text) => (text.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, two) => {
    const [high, low] = [luminance(one), luminance(two)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!colour.endsWith(", 0)") && colour !== "transparent") return channels(colour);
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  };
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("style")) continue;
    const style = getComputedStyle(element), drawn = element instanceof SVGElement;
    const scale = drawn ? Math.hypot(element.getScreenCTM().a, element.getScreenCTM().b) : 1;
    const size = parseFloat(style.fontSize) * scale, least = drawn ? 8.9 : 12;
    const text = element.textContent.trim().slice(0, 40);
    if (size < least) problems.push(`letters of ${size.toFixed(1)} pixels: ${text}`);
    const ratio = contrast(channels(drawn ? style.fill : style.color), behind(element));
    if (ratio < 4.5) problems.push(`contrast ${ratio.toFixed(1)}: ${text}`);
  }
  return problems;
}
