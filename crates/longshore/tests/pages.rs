//! The pages of `docs/commands/`: every command has one, the index names them all, and every example says what its page says.
//!
//! A block marked `console` holds commands after `$ ` (a line that ends with `\` goes on in the next), then `? ` and the
//! exit status where that is not 0, then all that the command says. There `...` on a line of its own stands for any lines and
//! `[..]` for any text within one; snapbox matches them. A shell runs the commands, in the repository's root: `longshore` is
//! the binary under test without its progress, `$TMP` a folder of the page's own, and nothing of the caller's environment is left.
//!
//! `SNAPSHOTS=overwrite cargo test --release -p longshore --test pages` writes into the pages what commands say now.

use snapbox::Data;
use snapbox::filter::NormalizeToExpected;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use tempfile::TempDir;

const LONGSHORE: &str = env!("CARGO_BIN_EXE_longshore");
const INDEX: &str = "README";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// The text of every page by its name, and that of the index.
fn pages() -> BTreeMap<String, String> {
    let folder = root().join("docs/commands");
    let paths = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let pages = paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).map(|path| {
        let name = path.file_stem().and_then(|name| name.to_str()).expect("UTF-8").to_owned();
        (name, fs::read_to_string(&path).expect("a page"))
    });
    pages.collect()
}

/// A command of a page and what it should do.
#[derive(Debug, PartialEq)]
struct Example {
    line: usize,
    command: String,
    status: i32,
    /// Where in the page stands what the command says.
    said: Range<usize>,
}

/// The examples of a page; the error names the line.
fn examples(page: &str) -> Result<Vec<Example>, String> {
    let mut examples: Vec<Example> = Vec::new();
    let (mut block, mut end) = (None, 0);
    for (line, text) in (1..).zip(page.split_inclusive('\n')) {
        end += text.len();
        let text = text.trim_end();
        if let Some(language) = text.strip_prefix("```") {
            block = if block.is_none() { Some((language, examples.len())) } else { None };
            continue;
        }
        let Some(("console", before)) = block else { continue };
        let last = if examples.len() > before { examples.last_mut() } else { None };
        match (last, text.strip_prefix("$ "), text.strip_prefix("? ")) {
            (Some(last), ..) if last.command.ends_with('\\') => {
                last.command += "\n";
                last.command += text;
                last.said = end..end;
            }
            (_, Some(command), _) => {
                examples.push(Example { line, command: command.into(), status: 0, said: end..end });
            }
            (Some(last), _, Some(status)) if last.said.is_empty() => {
                last.status = status.parse().map_err(|_| format!("line {line}: `{status}` is no exit status"))?;
                last.said = end..end;
            }
            (Some(last), ..) => last.said.end = end,
            (None, ..) => return Err(format!("line {line}: a block of examples begins with a command")),
        }
    }
    if block.is_some() { Err("the last block has no end".into()) } else { Ok(examples) }
}

/// A folder with a `longshore` that shows no progress, of which a slow machine would have lines.
fn program() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in\n*' --no-progress '*) exec '{LONGSHORE}' \"$@\" ;;\n\
         *) exec '{LONGSHORE}' --no-progress \"$@\" ;;\nesac\n"
    );
    let path = folder.path().join("longshore");
    fs::write(&path, script).expect("a writable folder");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its owner");
    folder
}

/// Exit status of a command and all that it says, in the order in which it says it.
fn run(command: &str, program: &Path, temp: &Path) -> (Option<i32>, String) {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).current_dir(root()).stdin(Stdio::null()).env_clear();
    shell.env("PATH", format!("{}:/usr/bin:/bin", program.display()));
    shell.env("TMP", temp).env("TMPDIR", temp).env("HOME", temp);
    shell.stdout(writer.try_clone().expect("a pipe")).stderr(writer);
    let mut child = shell.spawn().expect("a shell");
    // It holds the other end of the pipe, which would never close.
    drop(shell);
    let mut said = Vec::new();
    reader.read_to_end(&mut said).expect("what it says");
    let status = child.wait().expect("an exit status").code();
    let mut said = String::from_utf8_lossy(&said).replace(temp.to_str().expect("UTF-8"), "$TMP");
    if !said.is_empty() && !said.ends_with('\n') {
        said.push('\n');
    }
    (status, said)
}

/// The page with what its commands say now, and the examples for which that differs.
fn check(name: &str, page: &str, program: &Path) -> (String, Vec<String>) {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (mut now, mut copied, mut problems) = (String::new(), 0, Vec::new());
    for Example { line, command, status, said: place } in examples(page).unwrap_or_else(|e| panic!("{name}.md, {e}")) {
        let (ended, said) = run(&command, program, temp.path());
        let expected = &page[place.clone()];
        let matched = NormalizeToExpected::new().redact().normalize(Data::text(said), &Data::text(expected));
        let said = matched.render().expect("text");
        if ended != Some(status) || said != expected {
            let what = format!("should end with {status} and say\n{expected}but ended with {ended:?} and said\n{said}");
            problems.push(format!("{name}.md, line {line}: `{command}` {what}"));
        }
        now += &page[copied..place.start];
        now += &said;
        copied = place.end;
    }
    (now + &page[copied..], problems)
}

#[test]
fn every_example_does_what_its_page_says() {
    let (pages, problems) = (Mutex::new(pages()), Mutex::new(Vec::new()));
    let program = program();
    let overwrite = std::env::var_os("SNAPSHOTS").is_some_and(|value| value == "overwrite");
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                loop {
                    let next = pages.lock().expect("no panic").pop_first();
                    let Some((name, page)) = next else { break };
                    let (now, found) = check(&name, &page, program.path());
                    if overwrite && now != page {
                        fs::write(root().join(format!("docs/commands/{name}.md")), now).expect("a writable page");
                    }
                    problems.lock().expect("no panic").extend(found);
                }
            });
        }
    });
    let problems = problems.into_inner().expect("no panic");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What follows `Commands:` in the help, by the words that call it; commands that only group others are not among them.
fn commands(words: &str) -> Vec<String> {
    let help = Command::new(LONGSHORE).args(words.split_whitespace()).arg("--help").env_clear().output();
    let help = String::from_utf8(help.expect("the binary runs").stdout).expect("UTF-8");
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(|name| format!("{words} {name}").trim().to_owned()).collect()
}

#[test]
fn every_command_has_a_page_with_an_example() {
    let pages = pages();
    let shown = |words: &str| {
        let page = pages.get(&words.replace(' ', "-"))?;
        let called = format!("longshore {words} ");
        let examples = examples(page).unwrap_or_else(|e| panic!("{words}: {e}"));
        examples.iter().any(|example| format!("{} ", example.command).contains(&called)).then_some(())
    };
    let all = commands("");
    assert!(all.contains(&"convert".to_owned()), "{all:?}");
    // The commands of a group have a page each, or one together.
    let pageless = all.into_iter().filter(|command| shown(command).is_none()).flat_map(|command| {
        let parts = commands(&command);
        if parts.is_empty() { vec![command] } else { parts }
    });
    let pageless: Vec<String> = pageless.filter(|command| shown(command).is_none()).collect();
    assert!(pageless.is_empty(), "without a page in docs/commands that has an example: {}", pageless.join(", "));
}

#[test]
fn the_index_names_every_page() {
    let pages = pages();
    let links = pages[INDEX].split("](").skip(1).filter_map(|rest| rest.split_once(".md)")).map(|(name, _)| name);
    let linked: BTreeSet<&str> = links.filter(|name| !name.contains('/')).collect();
    let there: BTreeSet<&str> = pages.keys().map(String::as_str).filter(|name| *name != INDEX).collect();
    assert_eq!(linked, there);
}

#[test]
fn blocks_are_read() {
    let page = "\
```
$ not an example
```
```console
$ a \\
  b
? 2
said

```
```console
$ c
$ d
? 1
```
";
    let at = |text: &str| page.find(text).expect("it is there");
    let example = |line, command: &str, status, said| Example { line, command: command.into(), status, said };
    let (said, d) = (at("said")..at("said") + 6, at("? 1") + 4);
    let expected =
        [example(5, "a \\\n  b", 2, said), example(12, "c", 0, at("$ d")..at("$ d")), example(13, "d", 1, d..d)];
    assert_eq!(examples(page).as_deref(), Ok(expected.as_slice()));
    assert!(examples("```console\nsaid\n```\n").is_err_and(|error| error.starts_with("line 2: ")));
    assert!(examples("```console\n$ a\n? one\n```\n").is_err_and(|error| error.starts_with("line 3: ")));
    assert!(examples("```console\n$ a\n").is_err());
}
