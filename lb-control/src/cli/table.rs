//! Aligned tables and colours for people.

use std::{fmt::Write as _, io::IsTerminal as _};

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Figures.
    Right,
}

/// What a cell's text means, for its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Broken.
    Bad,
}

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell whose text has a meaning.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The text; two blanks between columns, none at the ends of lines.
    pub fn render(&self, colour: bool) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, (title, _))| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(i))
                    .map(|cell| cell.text.chars().count())
                    .chain([title.chars().count()])
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        let header: Vec<Cell> = self
            .columns
            .iter()
            .map(|(title, _)| (*title).into())
            .collect();
        let mut text = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            let cells = row.iter().zip(&self.columns).zip(&widths);
            for (i, ((cell, (_, align)), width)) in cells.enumerate() {
                if i > 0 {
                    line.push_str("  ");
                }
                let blanks = " ".repeat(width.saturating_sub(cell.text.chars().count()));
                let shown = paint(&cell.text, cell.tone, colour);
                match align {
                    Align::Left => {
                        let _ = write!(line, "{shown}{blanks}");
                    }
                    Align::Right => {
                        let _ = write!(line, "{blanks}{shown}");
                    }
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text in the colour of its tone.
pub fn paint(text: &str, tone: Tone, colour: bool) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Warning => "33",
        Tone::Bad => "31",
        Tone::Plain => return text.into(),
    };
    if colour {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.into()
    }
}

/// Whether standard output takes colours: a terminal, and no `NO_COLOR`.
pub fn colour_wanted() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A rate or size in three digits or so: `0`, `12.3`, `4.57 k`, `1.20 M`.
pub fn short(value: f64) -> String {
    let (scaled, unit) = match value {
        v if v >= 1e12 => (v / 1e12, " T"),
        v if v >= 1e9 => (v / 1e9, " G"),
        v if v >= 1e6 => (v / 1e6, " M"),
        v if v >= 1e3 => (v / 1e3, " k"),
        v => (v, ""),
    };
    match scaled {
        s if s >= 100.0 || s == 0.0 => format!("{s:.0}{unit}"),
        s if s >= 10.0 => format!("{s:.1}{unit}"),
        s => format!("{s:.2}{unit}"),
    }
}

/// Bits per second from bytes per second: `0 bit/s`, `12.3 Mbit/s`.
pub fn bits(bytes_per_second: f64) -> String {
    let text = short(bytes_per_second * 8.0);
    match text.split_once(' ') {
        Some((number, unit)) => format!("{number} {unit}bit/s"),
        None => format!("{text} bit/s"),
    }
}

/// A span of time in its two largest units: `5 s`, `3 min 20 s`, `2 d 4 h`.
pub fn span(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, m) => format!("{m} min {rest} s"),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("CPS", Align::Right),
            ("WHY", Align::Left),
        ]);
        table.row(vec!["a".into(), "1.5 k".into(), "".into()]);
        table.row(vec!["längerer".into(), "7".into(), "ok".into()]);
        assert_eq!(
            table.render(false),
            "NAME        CPS  WHY\n\
             a         1.5 k\n\
             längerer      7  ok\n"
        );
    }

    #[test]
    fn colour_does_not_move_a_column() {
        let mut table = Table::new(&[("STATE", Align::Left), ("N", Align::Right)]);
        table.row(vec![Cell::toned("up", Tone::Good), "1".into()]);
        assert_eq!(table.render(true), "STATE  N\n\x1b[32mup\x1b[0m     1\n");
        assert!(!table.render(false).contains('\x1b'));
    }

    #[test]
    fn figures_are_short_and_keep_their_unit() {
        assert_eq!(short(0.0), "0");
        assert_eq!(short(12.34), "12.3");
        assert_eq!(short(4_567.0), "4.57 k");
        assert_eq!(short(1_200_000.0), "1.20 M");
        assert_eq!(bits(1_250_000.0), "10.0 Mbit/s");
        assert_eq!(bits(0.0), "0 bit/s");
        assert_eq!(span(59), "59 s");
        assert_eq!(span(200), "3 min 20 s");
        assert_eq!(span(187_200), "2 d 4 h");
    }
}
