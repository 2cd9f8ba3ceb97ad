//! Completion: a script for `kubectl-relance`, and kubectl's own protocol for
//! plug-ins. kubectl runs `kubectl_complete-relance` with the words after
//! `kubectl relance`, the last of them unfinished, and reads a candidate a
//! line (with a description after a tab) and a last line `:N`, in which 4 says
//! that files are none.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory, FromArgMatches};

use super::access::Access;
use super::args::{Plugin, Reach};
use super::error::PluginError;
use super::follow::has_ended;
use super::{PLUGIN, exit, status};
use crate::terminal::{self, plain};

/// Nobody waits longer for a list of names.
const PATIENCE: Duration = Duration::from_secs(3);

/// Prints the script for a shell.
pub fn script(shell: clap_complete::Shell) -> Result<i32, PluginError> {
    let mut script = Vec::new();
    let mut command = Plugin::command().bin_name(PLUGIN);
    clap_complete::generate(shell, &mut command, PLUGIN, &mut script);
    terminal::print(&String::from_utf8_lossy(&script))?;
    Ok(exit::OK)
}

/// What kubectl is answered for `words`.
pub async fn answer(words: &[String]) -> String {
    let candidates = candidates(words).await;
    // A word that takes more than its line could be typed by nobody.
    let words = candidates
        .into_iter()
        .filter(|(word, _)| plain(word) == *word);
    let lines = words.map(|(word, about)| match about {
        about if about.is_empty() => format!("{word}\n"),
        about => format!("{word}\t{}\n", plain(&about)),
    });
    format!("{}:4\n", lines.collect::<String>())
}

/// What stands where the unfinished word is.
enum Here {
    Act,
    Flag,
    ValueOf(Box<Arg>),
    Position(usize),
}

struct Read {
    root: Command,
    act: Option<Command>,
    reach: Reach,
    here: Here,
}

/// Reads the words as far as they go: what is wrong in them is nobody's yet.
fn read(words: &[String]) -> Read {
    let mut root = Plugin::command();
    root.build();
    let mut act: Option<Command> = None;
    let mut reach = Vec::new();
    let mut positions = 0;
    let mut flag: Option<Arg> = None;
    let (done, last) = match words.split_last() {
        Some((last, done)) => (done, last.as_str()),
        None => (words, ""),
    };
    for word in done {
        if let Some(arg) = flag.take() {
            if let Some(long) = arg.get_long() {
                reach.push(format!("--{long}={word}"));
            }
            continue;
        }
        match word.strip_prefix('-') {
            Some(long) if long.starts_with('-') && long.contains('=') => reach.push(word.clone()),
            Some(short) if !short.starts_with('-') => {
                let (arg, value) = short_flags(act.as_ref().unwrap_or(&root), short);
                match (arg.as_ref().and_then(Arg::get_long), value) {
                    (Some(long), Some(value)) => reach.push(format!("--{long}={value}")),
                    _ => flag = arg,
                }
            }
            Some(_) => flag = takes_value(act.as_ref().unwrap_or(&root), word),
            None if act.is_none() => act = root.find_subcommand(word).cloned(),
            None => positions += 1,
        }
    }
    let here = match flag {
        Some(arg) => Here::ValueOf(Box::new(arg)),
        None if last.starts_with('-') => Here::Flag,
        None if act.is_none() => Here::Act,
        None => Here::Position(positions),
    };
    Read {
        reach: reach_of(&reach),
        root,
        act,
        here,
    }
}

fn takes_value(command: &Command, word: &str) -> Option<Arg> {
    let mut all = command.get_arguments();
    let long = word.strip_prefix("--");
    let arg = all.find(|arg| long.is_some() && arg.get_long() == long)?;
    arg.get_action().takes_values().then(|| arg.clone())
}

/// The flag of a word such as `-n`, `-nNAME`, `-n=NAME` or `-fn` that takes a
/// value, and the value if it is in the word.
fn short_flags(command: &Command, word: &str) -> (Option<Arg>, Option<String>) {
    for (at, short) in word.char_indices() {
        let mut all = command.get_arguments();
        let Some(arg) = all.find(|arg| arg.get_short() == Some(short)) else {
            break;
        };
        if arg.get_action().takes_values() {
            let value = &word[at + short.len_utf8()..];
            let value = value.strip_prefix('=').unwrap_or(value);
            let value = (!value.is_empty()).then(|| value.to_string());
            return (Some(arg.clone()), value);
        }
    }
    (None, None)
}

/// How to reach the cluster, by those of `flags` that say so.
fn reach_of(flags: &[String]) -> Reach {
    let known = ["--kubeconfig=", "--context=", "--namespace="];
    let flags = flags
        .iter()
        .filter(|flag| known.iter().any(|known| flag.starts_with(known)));
    let command = <Reach as clap::Args>::augment_args(Command::new(PLUGIN));
    let words = [PLUGIN.to_string()].into_iter().chain(flags.cloned());
    let matches = command.try_get_matches_from(words).ok();
    matches
        .and_then(|matches| Reach::from_arg_matches(&matches).ok())
        .unwrap_or_default()
}

type Candidates = Vec<(String, String)>;

async fn candidates(words: &[String]) -> Candidates {
    let read = read(words);
    let unfinished = words.last().map(String::as_str).unwrap_or_default();
    let command = read.act.as_ref().unwrap_or(&read.root);
    let found = match &read.here {
        Here::Act => read.root.get_subcommands().map(about).collect(),
        Here::Flag => flags(command),
        Here::ValueOf(arg) => values(arg, &read.reach).await,
        Here::Position(at) => match command.get_positionals().nth(*at) {
            Some(arg) if arg.get_id() == "name" => names(&read.reach, command.get_name()).await,
            Some(arg) if arg.get_id() == "view" => views(&read.reach).await,
            Some(arg) => values(arg, &read.reach).await,
            None => Vec::new(),
        },
    };
    let fits = found.into_iter();
    fits.filter(|(word, _)| word.starts_with(unfinished))
        .collect()
}

fn about(command: &Command) -> (String, String) {
    let about = command.get_about().map(ToString::to_string);
    let name = command.get_name().to_string();
    (name, first_sentence(&about.unwrap_or_default()))
}

fn flags(command: &Command) -> Candidates {
    let flags = command.get_arguments().filter_map(|arg| {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        Some((format!("--{}", arg.get_long()?), first_sentence(&help)))
    });
    flags.collect()
}

fn first_sentence(text: &str) -> String {
    let text = text.lines().next().unwrap_or_default();
    let end = text.find(". ").unwrap_or(text.len());
    text[..end].trim_end_matches('.').to_string()
}

async fn values(arg: &Arg, reach: &Reach) -> Candidates {
    if arg.get_id() == "cluster" {
        return clusters(reach).await;
    }
    if arg.get_id() == "view" {
        return views(reach).await;
    }
    let values = arg.get_possible_values().into_iter();
    let values = values.map(|value| {
        let help = value.get_help().map(ToString::to_string);
        (value.get_name().to_string(), help.unwrap_or_default())
    });
    values.collect()
}

/// Refreshes that `act` can be done to.
async fn names(reach: &Reach, act: &str) -> Candidates {
    let any = matches!(act, "status" | "logs");
    let listed = async {
        let access = Access::connect(reach, "").await?;
        access.list().await
    };
    let listed = tokio::time::timeout(PATIENCE, listed).await;
    let listed = listed.ok().and_then(Result::ok).unwrap_or_default();
    listed
        .iter()
        .filter(|refresh| any || !has_ended(refresh))
        .map(|refresh| {
            let name = refresh.metadata.name.clone().unwrap_or_default();
            let view = status::view(refresh);
            (name, format!("{view} {:?}", refresh.phase()))
        })
        .collect()
}

/// Views that have been refreshed before: the API knows of no others.
async fn views(reach: &Reach) -> Candidates {
    let listed = async {
        let access = Access::connect(reach, "").await?;
        access.list().await
    };
    let listed = tokio::time::timeout(PATIENCE, listed).await;
    let listed = listed.ok().and_then(Result::ok).unwrap_or_default();
    let views: BTreeSet<String> = listed.iter().map(status::view).collect();
    views.into_iter().map(|v| (v, String::new())).collect()
}

async fn clusters(reach: &Reach) -> Candidates {
    let listed = async {
        let access = Access::connect(reach, "").await?;
        let all = access.clusters.list(&Default::default()).await;
        all.map_err(|error| access.error(&error))
    };
    let listed = tokio::time::timeout(PATIENCE, listed).await;
    let listed = listed.ok().and_then(Result::ok);
    let names = listed.into_iter().flatten();
    names
        .filter_map(|cluster| Some((cluster.metadata.name?, String::new())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_string).collect();
        let found = candidates(&words).await;
        found.into_iter().map(|(word, _)| word).collect()
    }

    #[tokio::test]
    async fn commands_flags_and_values_are_offered_where_they_stand() {
        assert_eq!(said("s").await, ["status", "suspend"]);
        assert_eq!(said("-n ns ca").await, ["cancel"]);
        assert_eq!(said("refresh v --wa").await, ["--wait"]);
        assert_eq!(said("refresh v --wait -o ").await, ["name", "json", "yaml"]);
        assert_eq!(said("completion z").await, ["zsh"]);
        assert_eq!(said("refresh v --full more ").await, [""; 0]);
        let flags = said("wait r --").await;
        assert!(flags.contains(&"--timeout".to_string()));
        assert!(flags.contains(&"--namespace".to_string()), "{flags:?}");
    }

    #[tokio::test]
    async fn the_last_line_tells_kubectl_that_files_are_none() {
        let answer = answer(&["wai".to_string()]).await;
        let (candidate, end) = answer.split_once('\n').expect("two lines");
        assert!(candidate.starts_with("wait\tWait for a refresh's end"));
        assert_eq!(end, ":4\n");
    }

    #[test]
    fn the_cluster_that_the_words_speak_of_is_the_one_that_is_asked() {
        let words = ["-n", "ns", "--context=c", "cancel", ""].map(str::to_string);
        let read = read(&words);
        assert_eq!(read.reach.namespace.as_deref(), Some("ns"));
        assert_eq!(read.reach.context.as_deref(), Some("c"));
        for words in [
            &["-nns", "cancel", ""][..],
            &["-n=ns", "cancel", ""],
            &["logs", "-fnns", ""],
            &["logs", "-fn", "ns", ""],
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_string()).collect();
            let read = super::read(&words);
            assert_eq!(read.reach.namespace.as_deref(), Some("ns"), "{words:?}");
            assert!(matches!(read.here, Here::Position(0)), "{words:?}");
        }
    }
}
