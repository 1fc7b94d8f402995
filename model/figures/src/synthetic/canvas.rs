//! Builds SVG in the style of one artist. Lines and shading are decided here, so that the parts
//! specify only shapes and colours. Independent of figures.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::colour::{Colour, INK};
use super::design::{Artist, Shading};

pub(super) type Point = (f64, f64);

#[derive(Debug)]
pub(super) struct Canvas {
    artist: Artist,
    defs: String,
    body: String,
    gradients: BTreeMap<(Colour, Colour), usize>,
}

impl Canvas {
    pub(super) fn new(artist: Artist) -> Self {
        Self {
            artist,
            defs: String::new(),
            body: String::new(),
            gradients: BTreeMap::new(),
        }
    }

    /// A filled, shaded and outlined shape: `d` is SVG path data.
    pub(super) fn shape(&mut self, d: &str, colour: Colour) {
        let fill = self.shaded(colour);
        let (line, width) = (self.line_colour(colour).hex(), self.artist.line);
        self.put(format_args!(
            r#"<path d="{d}" fill="{fill}" stroke="{line}" stroke-width="{width}"
                stroke-linejoin="round" stroke-linecap="round"/>"#
        ));
    }

    /// An outlined shape of one colour, independent of the artist's shading: large faces would look
    /// patchy with it.
    pub(super) fn plain(&mut self, d: &str, colour: Colour, width: f64) {
        let line = self.line_colour(colour).hex();
        self.put(format_args!(
            r#"<path d="{d}" fill="{}" stroke="{line}" stroke-width="{width}"
                stroke-linejoin="round"/>"#,
            colour.hex()
        ));
    }

    /// A filled shape without outline or shade.
    pub(super) fn flat(&mut self, d: &str, colour: Colour) {
        self.put(format_args!(r#"<path d="{d}" fill="{}"/>"#, colour.hex()));
    }

    /// As [`Self::flat`], partly transparent.
    pub(super) fn veil(&mut self, d: &str, colour: Colour, opacity: f64) {
        self.put(format_args!(
            r#"<path d="{d}" fill="{}" fill-opacity="{opacity}"/>"#,
            colour.hex()
        ));
    }

    /// A line in the given colour.
    pub(super) fn line(&mut self, d: &str, colour: Colour, width: f64) {
        self.put(format_args!(
            r#"<path d="{d}" fill="none" stroke="{}" stroke-width="{width}"
                stroke-linejoin="round" stroke-linecap="round"/>"#,
            colour.hex()
        ));
    }

    /// A fold or seam: a thin line in the outline's colour for `of`.
    pub(super) fn seam(&mut self, d: &str, of: Colour) {
        let colour = self.line_colour(of).mix(of, 0.35);
        self.line(d, colour, (self.artist.line * 0.7).max(1.1));
    }

    pub(super) fn ellipse(&mut self, at: Point, rx: f64, ry: f64, colour: Colour) {
        self.put(format_args!(
            r#"<ellipse cx="{:.1}" cy="{:.1}" rx="{rx:.1}" ry="{ry:.1}" fill="{}"/>"#,
            at.0,
            at.1,
            colour.hex()
        ));
    }

    /// An ellipse with outline and shade.
    pub(super) fn ball(&mut self, at: Point, rx: f64, ry: f64, colour: Colour) {
        let fill = self.shaded(colour);
        let (line, width) = (self.line_colour(colour).hex(), self.artist.line);
        self.put(format_args!(
            r#"<ellipse cx="{:.1}" cy="{:.1}" rx="{rx:.1}" ry="{ry:.1}"
                fill="{fill}" stroke="{line}" stroke-width="{width}"/>"#,
            at.0, at.1
        ));
    }

    pub(super) fn ring(&mut self, at: Point, rx: f64, ry: f64, colour: Colour, width: f64) {
        self.put(format_args!(
            r#"<ellipse cx="{:.1}" cy="{:.1}" rx="{rx:.1}" ry="{ry:.1}"
                fill="none" stroke="{}" stroke-width="{width}"/>"#,
            at.0,
            at.1,
            colour.hex()
        ));
    }

    /// A curved arm, leg or sleeve: a thick outlined stroke from `a` past `bend` to `b`.
    pub(super) fn limb(&mut self, [a, bend, b]: [Point; 3], width: f64, colour: Colour) {
        let toward = |p: Point| (p.0 + (bend.0 - p.0) * 0.82, p.1 + (bend.1 - p.1) * 0.82);
        let (c1, c2) = (toward(a), toward(b));
        let d = format!(
            "M{:.1} {:.1}C{:.1} {:.1} {:.1} {:.1} {:.1} {:.1}",
            a.0, a.1, c1.0, c1.1, c2.0, c2.1, b.0, b.1
        );
        let line = self.line_colour(colour);
        self.line(&d, line, width + 2.0 * self.artist.line * 0.55);
        self.line(&d, colour, width - 0.9 * self.artist.line);
        if self.artist.shading != Shading::Flat {
            // The lit side, as a thinner and lighter core.
            self.line(&d, colour.shade(1.16), width * 0.32);
        }
    }

    /// A band across a limb: a short thick stroke with flat ends.
    pub(super) fn limb_band(&mut self, a: Point, b: Point, width: f64, colour: Colour) {
        self.put(format_args!(
            r#"<path d="M{:.1} {:.1}L{:.1} {:.1}" stroke="{}" stroke-width="{width}"/>"#,
            a.0,
            a.1,
            b.0,
            b.1,
            colour.hex()
        ));
    }

    /// Starts a group; close it with [`Self::end`].
    pub(super) fn group(&mut self, transform: &str) {
        self.put(format_args!(r#"<g transform="{transform}">"#));
    }

    pub(super) fn end(&mut self) {
        self.body.push_str("</g>");
    }

    pub(super) fn artist(&self) -> Artist {
        self.artist
    }

    /// A vertical gradient as a fill value.
    pub(super) fn gradient(&mut self, top: Colour, bottom: Colour) -> String {
        let next = self.gradients.len();
        let id = *self.gradients.entry((top, bottom)).or_insert(next);
        if id == next {
            let _ = write!(
                self.defs,
                r#"<linearGradient id="g{id}" x1="0" y1="0" x2="0" y2="1"><stop
                    offset="0" stop-color="{}"/><stop
                    offset="1" stop-color="{}"/></linearGradient>"#,
                top.hex(),
                bottom.hex()
            );
        }
        format!("url(#g{id})")
    }

    /// Appends any SVG.
    pub(super) fn put(&mut self, svg: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(svg);
    }

    /// The whole document: `size` pixels wide and high, with a view box at (x, y) of `side` units.
    pub(super) fn finish(self, size: u32, (x, y): Point, side: f64) -> String {
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" viewBox="{x:.2} {y:.2} {side:.2} {side:.2}"><defs>{}</defs>{}</svg>"#,
            self.defs, self.body
        )
    }

    fn line_colour(&self, of: Colour) -> Colour {
        if self.artist.tinted_lines {
            of.shade(0.45).mix(INK, 0.25)
        } else {
            INK
        }
    }

    fn shaded(&mut self, colour: Colour) -> String {
        match self.artist.shading {
            Shading::Flat => colour.hex(),
            Shading::Soft => self.gradient(colour.shade(1.14), colour.shade(0.84)),
            Shading::Cel => self.hard_gradient(colour),
        }
    }

    /// Cel shading: light above, a hard-edged shadow below and to the right.
    fn hard_gradient(&mut self, colour: Colour) -> String {
        let next = self.gradients.len();
        let id = *self.gradients.entry((colour, colour)).or_insert(next);
        if id == next {
            let dark = colour.shade(0.78).mix(Colour(70, 40, 120), 0.08);
            let _ = write!(
                self.defs,
                r#"<linearGradient id="g{id}" x1="0.15" y1="0" x2="0.6" y2="1"><stop
                    offset="0.66" stop-color="{}"/><stop
                    offset="0.67" stop-color="{}"/></linearGradient>"#,
                colour.hex(),
                dark.hex()
            );
        }
        format!("url(#g{id})")
    }
}
