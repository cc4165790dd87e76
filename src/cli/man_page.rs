//! `man/plyfs.1` tells all that the program knows, and nothing else: clap is asked for verbs and
//! their options, and the mount program's parser, which has no list of its options, is offered
//! every word that it could know, which are the literals in its own source.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::CommandFactory;

use super::mount_options::{self, Request};

const PAGE: &str = include_str!("../../man/plyfs.1");
const PARSER: &str = include_str!("mount_options.rs");

type Names = BTreeSet<String>;

/// What stands between the heading (`Sh NAME`, `Ss NAME`) and the next one of its rank.
fn below(heading: &str) -> &'static str {
    let line = format!("\n.{heading}\n");
    let (_, text) = PAGE.split_once(&line).unwrap_or_else(|| panic!("no .{heading} in the page"));
    let ends = [text.find("\n.Sh "), text.find("\n.Ss ").filter(|_| heading.starts_with("Ss "))];
    let end = ends.into_iter().flatten().min().unwrap_or(text.len());
    &text[..end]
}

/// The items of lists in `text` that `macro_name` marks: of `.It Cm a , b , Cm c Ns = Ns Ar D`,
/// a, b and c.
fn items(text: &str, macro_name: &str) -> Names {
    let mut names = Names::new();
    for line in text.lines().filter_map(|line| line.strip_prefix(".It ")) {
        let mut is_marked = false;
        // What follows `Ns` belongs to the word before it.
        let mut after = "";
        for word in line.split(' ') {
            match word {
                "Ns" | "Ar" | "Oo" | "Oc" | "Op" => is_marked = false,
                _ if word == macro_name => is_marked = after != "Ns",
                "," => {}
                _ if is_marked => drop(names.insert(word.to_owned())),
                _ => {}
            }
            after = word;
        }
    }
    names
}

/// An argument as mdoc's `Fl` takes it: without its first hyphen.
fn flags(command: &clap::Command) -> Names {
    let args = command.get_arguments().filter(|arg| !arg.is_positional());
    let args = args.filter(|arg| !arg.is_global_set() && arg.get_id() != "help");
    let short = |arg: &clap::Arg| arg.get_short().map(String::from);
    let long = |arg: &clap::Arg| arg.get_long().map(|long| format!("-{long}"));
    args.flat_map(|arg| [short(arg), long(arg)]).flatten().collect()
}

/// Values that an argument is limited to.
fn values(command: &clap::Command) -> impl Iterator<Item = String> {
    let takes_value = |arg: &&clap::Arg| arg.get_action().takes_values();
    let values =
        command.get_arguments().filter(takes_value).flat_map(clap::Arg::get_possible_values);
    values.map(|value| value.get_name().to_owned())
}

fn cli() -> clap::Command {
    let mut cli = super::Cli::command();
    cli.build();
    cli
}

#[test]
fn each_verb_has_its_section_and_options() {
    let verbs: Names =
        cli().get_subcommands().map(|verb| format!(".Ss plyfs {}", verb.get_name())).collect();
    let told = below("Sh COMMANDS").lines().filter(|line| line.starts_with(".Ss "));
    assert_eq!(told.map(str::to_owned).collect::<Names>(), verbs);
    for verb in cli().get_subcommands() {
        let name = verb.get_name();
        let text = below(&format!("Ss plyfs {name}"));
        assert_eq!(items(text, "Fl"), flags(verb), "plyfs {name}: left the page's, right clap's");
        for value in values(verb) {
            assert!(text.contains(&format!("\n.Cm {value}")), "plyfs {name}: no .Cm {value}");
        }
    }
}

#[test]
fn what_all_verbs_take_is_told() {
    let (above, _) = below("Sh COMMANDS").split_once("\n.Ss ").unwrap();
    let all = cli();
    let global = all.get_arguments().filter_map(clap::Arg::get_long);
    for long in global {
        assert!(above.contains(&format!("Fl -{long}")), "no Fl -{long}");
    }
    let variables = all.get_arguments().filter_map(clap::Arg::get_env);
    for variable in variables {
        let item = format!("\n.It Ev {}\n", variable.to_string_lossy());
        assert!(below("Sh ENVIRONMENT").contains(&item), "no {item}");
    }
}

/// The string literals of the mount program's parser.
fn literals() -> impl Iterator<Item = &'static str> {
    let (parser, _) = PARSER.split_once("\n#[cfg(test)]").unwrap();
    let code = parser.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split('"').skip(1).step_by(2))
}

/// Whether the mount program takes `-o OPTION`, refuses it with a reason of its own, or has
/// never heard of it (false).
fn is_known(option: &str) -> bool {
    let line = ["-o", "lowerdir=a", "-o", option, "m"].map(OsString::from);
    match mount_options::parse(&line) {
        Ok(Request::Mount(call)) => call.options.unknown.is_empty(),
        Ok(Request::Help | Request::Version) => panic!("{option} is no option"),
        Err(_) => true,
    }
}

fn is_option_name(text: &&str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    !text.is_empty() && !text.starts_with('-') && text.bytes().all(good)
}

#[test]
fn each_mount_option_is_told() {
    let takes = |option: &&str| is_known(option) || is_known(&format!("{option}=1"));
    let known: Names = literals().filter(is_option_name).filter(takes).map(str::to_owned).collect();
    assert!(known.contains("lowerdir") && known.contains("rw") && known.len() > 50, "{known:?}");
    assert_eq!(
        items(below("Sh MOUNT OPTIONS"), "Cm"),
        known,
        "left the page's, right the parser's"
    );
}

#[test]
fn each_flag_of_a_mount_program_is_told() {
    let is_flag = |text: &&str| text.starts_with('-') && !text.contains(' ') && *text != "--";
    let known: Names = literals().filter(is_flag).map(|flag| flag[1..].to_owned()).collect();
    assert!(known.contains("o") && known.contains("-debug"), "{known:?}");
    assert_eq!(items(below("Sh THE MOUNT PROGRAM"), "Fl"), known);
}
