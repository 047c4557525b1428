//! Rules of the source that a search can check: who may name what, and what must not be there.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// A file of `src`, without its tests.
struct Source {
    /// Below the root of the repository, with slashes.
    path: String,
    /// All of it.
    text: String,
    /// The lines before the first `#[cfg(test)]`, without comments; none of a file of tests.
    code: Vec<String>,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a source file is UTF-8");
        let path = path.strip_prefix(root).expect("it is in the repository");
        let path = path.to_str().expect("a name in UTF-8").replace('\\', "/");
        let is_test = is_test_file(&path);
        let code = text
            .lines()
            .take_while(|line| !is_test && line.trim() != "#[cfg(test)]")
            .map(|line| line.split("//").next().unwrap_or_default().to_owned())
            .collect();
        Self { path, text, code }
    }

    fn names(&self, word: &str) -> bool {
        self.code.iter().any(|line| has_word(line, word))
    }
}

/// Files that are a module of tests as a whole.
fn is_test_file(path: &str) -> bool {
    ["/tests.rs", "/properties.rs", "/example.rs", "/simulation.rs"]
        .iter()
        .any(|name| path.ends_with(name))
        && path != "src/config/properties.rs"
        || path.contains("/tests/")
        || path.contains("/simulation/")
}

/// `word` stands in the line and is not a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let part = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    line.match_indices(word).any(|(at, _)| {
        !part(line[..at].chars().next_back()) && !part(line[at + word.len()..].chars().next())
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).expect("a folder of the repository can be read");
    for entry in entries {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files_below(&root().join("src"), &mut paths);
    assert!(paths.len() > 30, "these are the sources: {paths:?}");
    paths.sort();
    paths.iter().map(|path| Source::read(root(), path)).collect()
}

/// Only files below one of `places` name one of `words`.
#[track_caller]
fn check_arrow(words: &[&str], places: &[&str], why: &str) {
    let sources = sources();
    let names = |source: &&Source| words.iter().any(|word| source.names(word));
    let naming: BTreeSet<_> =
        sources.iter().filter(names).map(|source| source.path.clone()).collect();
    assert!(!naming.is_empty(), "{words:?} is nowhere: the search is broken");
    let allowed = |path: &String| places.iter().any(|place| path.starts_with(place));
    let wrong: Vec<_> = naming.iter().filter(|path| !allowed(path)).collect();
    assert!(wrong.is_empty(), "{words:?} only below {places:?}: {why}\nnamed in {wrong:?}");
}

#[test]
fn only_the_source_names_the_clients_consumer() {
    check_arrow(
        &[
            "BaseConsumer",
            "StreamConsumer",
            "ConsumerContext",
            "consumer::Consumer",
            "rd_kafka_consumer_poll",
        ],
        &["src/source", "src/demo/cluster.rs", "src/verify/reader.rs", "src/verify/group.rs"],
        "what is read comes in one way; the demo plays the world outside; a check of the daemon \
         shares no code with it",
    );
}

#[test]
fn only_commit_names_the_clients_producer() {
    check_arrow(
        &[
            "BaseProducer",
            "FutureProducer",
            "ThreadedProducer",
            "ProducerContext",
            "rd_kafka_producev",
            "rd_kafka_begin_transaction",
        ],
        &["src/commit/producer.rs", "src/commit/transaction/client.rs", "src/demo/cluster.rs"],
        "what is written goes out one way; the demo plays the world outside",
    );
}

#[test]
fn only_the_store_names_rocksdb() {
    check_arrow(&["rocksdb"], &["src/dedup/store"], "the log's format is decided in one place");
}

#[test]
fn only_the_clock_reads_the_wall_clock() {
    check_arrow(
        &["SystemTime::now", "Utc::now"],
        &["src/clock.rs"],
        "a verdict must not depend on the time of day",
    );
}

#[test]
fn only_command_line_configuration_and_logging_look_at_the_environment() {
    check_arrow(
        &["env::var", "env::vars", "env::var_os", "env::vars_os", "env::args", "env::args_os"],
        &["src/cli.rs", "src/cli/", "src/config", "src/logging.rs", "src/demo", "src/fault.rs"],
        "what is set is set in the configuration",
    );
}

#[test]
fn nothing_is_left_to_do_and_nothing_is_unwrapped() {
    let words = ["todo!", "unimplemented!", ".unwrap()", ".unwrap_err()", "dbg!"];
    let found: Vec<_> = sources()
        .iter()
        .flat_map(|source| {
            let numbered = (1..).zip(&source.code);
            let bad = numbered.filter(|(_, line)| words.iter().any(|word| line.contains(word)));
            bad.map(|(at, line)| format!("{}:{at}: {}", source.path, line.trim()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "an expect says which invariant broke:\n{}", found.join("\n"));
}

#[test]
fn no_file_is_longer_than_600_lines() {
    // Its tests count too: a file that is read from top to bottom. A ratchet: never longer.
    const LONGER: [(&str, usize); 2] = [("src/identity.rs", 720), ("src/handler/http.rs", 690)];
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        let allowed = LONGER.iter().find(|(path, _)| *path == source.path);
        let most = allowed.map_or(600, |(_, most)| *most);
        if lines > most {
            wrong.push(format!("{} has {lines} lines, of {most}", source.path));
        }
        if let Some((path, _)) = allowed.filter(|_| lines <= 600) {
            wrong.push(format!("{path} is short enough: take it off the list"));
        }
    }
    assert!(wrong.is_empty(), "split it by what it owns:\n{}", wrong.join("\n"));
}

/// Names of metrics in a text: words that begin with `onced_`, without a histogram's suffix.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let inside = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_';
    text.split(|char: char| !(char.is_alphanumeric() || matches!(char, '_' | '-' | '/' | '.')))
        .filter(|word| word.starts_with("onced_") && word.chars().all(inside))
        .map(str::to_owned)
        .collect()
}

#[test]
fn metrics_that_the_texts_name_exist() {
    let names: BTreeSet<String> = onced::metrics::names().into_iter().collect();
    assert!(names.contains("onced_records_total"));
    let known = |word: &str| {
        let suffixes = ["_bucket", "_sum", "_count"];
        names.contains(word)
            || suffixes.iter().any(|suffix| {
                word.strip_suffix(suffix).is_some_and(|family| names.contains(family))
            })
    };
    let mut wrong = Vec::new();
    for text in texts() {
        let read = fs::read_to_string(root().join(&text)).expect("it can be read");
        for word in metrics_in(&read) {
            if !known(&word) {
                wrong.push(format!("{text}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "no such metrics: {wrong:#?}");
}

/// What is written for people and machines around the code.
fn texts() -> Vec<String> {
    let mut found = vec!["config/onced.toml".to_owned()];
    if root().join("README.md").exists() {
        found.push("README.md".to_owned());
    }
    for folder in ["dashboards", "docs"] {
        let Ok(entries) = fs::read_dir(root().join(folder)) else { continue };
        for entry in entries {
            let path = entry.expect("it can be read").path();
            if path.is_file() {
                let path = path.strip_prefix(root()).expect("it is in the repository");
                found.push(path.to_str().expect("a name in UTF-8").to_owned());
            }
        }
    }
    found
}

#[test]
fn files_that_the_readme_names_exist() {
    let Ok(readme) = fs::read_to_string(root().join("README.md")) else { return };
    let inside = |char: char| char.is_alphanumeric() || matches!(char, '_' | '-' | '/' | '.');
    let named: BTreeSet<&str> = readme
        .split(|char: char| !inside(char))
        .map(|word| word.trim_end_matches(['.', '/']).trim_start_matches("./"))
        .filter(|word| {
            ["scripts/", "config/", "src/", "tests/", "docs/", "dashboards/"]
                .iter()
                .any(|folder| word.starts_with(folder))
        })
        .collect();
    let missing: Vec<_> = named.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "README.md names what is not there: {missing:?}");
}

#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    let entries = fs::read_dir(root().join("scripts")).expect("there are scripts");
    for entry in entries {
        let path = entry.expect("it can be read").path();
        let text = fs::read(&path).unwrap_or_default();
        if text.starts_with(b"#!") {
            let mode = fs::metadata(&path).expect("it is there").permissions().mode();
            assert!(mode & 0o111 != 0, "{} starts with #! and cannot be run", path.display());
        }
    }
}

#[test]
fn the_search_finds_what_it_looks_for() {
    assert!(has_word("use rocksdb::DB;", "rocksdb"));
    assert!(!has_word("my_rocksdb.x", "rocksdb"));
    let text = "`onced_ready` and onced_log_bytes, not /tmp/onced_dir or onced-x";
    let names = metrics_in(text);
    assert_eq!(names.iter().collect::<Vec<_>>(), ["onced_log_bytes", "onced_ready"]);
}

#[test]
fn the_verifier_shares_only_formats_and_configuration_with_the_daemon() {
    const SHARED: [&str; 9] = [
        "cli",
        "clock",
        "commit::letters",
        "commit::offsets",
        "config",
        "daemon::exit",
        // How the configuration says them.
        "dedup::expiry::Anchor",
        "logging",
        "record",
    ];
    let mut wrong = Vec::new();
    let sources = sources();
    let verifier = |source: &&Source| source.path.starts_with("src/verify");
    assert!(sources.iter().filter(verifier).count() > 5, "these are the verifier's sources");
    for source in sources.iter().filter(verifier) {
        for line in source.code.iter().filter(|line| line.contains("crate::")) {
            let rest = line.split("crate::").nth(1).unwrap_or_default();
            // Keys are made anew; only where the configuration says they are is read.
            let configured = line.contains("use crate::identity::{self, Canonical, KeySource");
            if !configured && !SHARED.iter().any(|shared| rest.starts_with(shared)) {
                wrong.push(format!("{}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "a check of the daemon shares no code with it:\n{}",
        wrong.join("\n")
    );
}
