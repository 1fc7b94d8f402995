//! What the terminal can show. Called where a program chooses between plain and moving output.

use std::io::IsTerminal;

/// Whether standard error is a terminal that can redraw a line: not a pipe or file, not `TERM=dumb`
/// (Emacs, some CI consoles), and not without `TERM`.
#[must_use]
pub fn can_redraw() -> bool {
    redraws(
        std::io::stderr().is_terminal(),
        std::env::var("TERM").ok().as_deref(),
    )
}

/// The same of standard output.
#[must_use]
pub fn can_redraw_output() -> bool {
    redraws(
        std::io::stdout().is_terminal(),
        std::env::var("TERM").ok().as_deref(),
    )
}

/// Rows and columns of the terminal at standard output, or else at standard error. None: there is
/// none, or it does not say.
#[must_use]
pub fn size() -> Option<(usize, usize)> {
    let known = |size: rustix::termios::Winsize| {
        let (rows, columns) = (usize::from(size.ws_row), usize::from(size.ws_col));
        (0 < rows && 0 < columns).then_some((rows, columns))
    };
    let of_stdout = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let of_stderr = || rustix::termios::tcgetwinsize(std::io::stderr()).ok();
    of_stdout
        .and_then(known)
        .or_else(|| of_stderr().and_then(known))
}

/// Whether standard error shows colours: [`can_redraw`], and `NO_COLOR` is not set
/// (<https://no-color.org>).
#[must_use]
pub fn has_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    can_redraw() && !unwanted
}

fn redraws(is_terminal: bool, term: Option<&str>) -> bool {
    is_terminal && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_with_a_name_that_is_not_dumb_redraws() {
        for (is_terminal, term, expected) in [
            (true, Some("xterm-256color"), true),
            (true, Some("dumb"), false),
            (true, Some(""), false),
            (true, None, false),
            (false, Some("xterm"), false),
        ] {
            assert_eq!(redraws(is_terminal, term), expected, "{term:?}");
        }
    }
}
