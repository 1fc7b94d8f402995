//! `coordinator completions` and `coordinator man`: made from the same description of commands as
//! `--help`, so that they cannot differ from it.

use super::{Cli, Outcome};
use crate::text::outln;
use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};
use shell::print::out_lines;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell; for bash: `source <(coordinator completions bash)`
    shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write a page for each command into this folder, which is created; without it the page of the
    /// whole program is printed: `coordinator man | man -l -`
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// As text.
fn script(shell: Shell) -> String {
    let mut bytes = Vec::new();
    generate(shell, &mut Cli::command(), "coordinator", &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) fn completions(args: &CompletionsArgs) -> Outcome {
    out_lines(script(args.shell).trim_end());
    Outcome::True
}

pub(crate) fn man(args: &ManArgs) -> Result<Outcome> {
    let Some(folder) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .context("cannot make the page")?;
        out_lines(String::from_utf8_lossy(&page).trim_end());
        return Ok(Outcome::True);
    };
    let shown = folder.display();
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {shown}"))?;
    clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("cannot write into {shown}"))?;
    let pages = std::fs::read_dir(folder).with_context(|| format!("cannot read {shown}"))?;
    let pages = pages
        .flatten()
        .filter(|page| page.path().extension().is_some_and(|it| it == "1"));
    outln!("{} pages in {shown}", pages.count());
    Ok(Outcome::True)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_description_of_commands_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_completed_and_has_a_page_and_hidden_ones_have_none() {
        let dir = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(Cli::command(), dir.path()).unwrap();
        let pages: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let script = script(Shell::Bash);
        for command in Cli::command().get_subcommands() {
            let (name, hidden) = (command.get_name(), command.is_hide_set());
            let page = format!("coordinator-{name}.1");
            assert_eq!(pages.contains(&page), !hidden, "{name}");
            assert!(hidden || script.contains(name), "{name}");
        }
    }
}
