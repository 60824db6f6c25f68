//! The pages are true: links lead somewhere, every reason is explained in the words of the code, every command of the program
//! that a page names exists, and what the README says to try is tried.
//!
//! A block that begins with ```sh try runs as it stands, in a folder that looks like a clone in which `make run` serves.

use crate::support::site::{BINARY, KMSCTL, Site};
use kube_kms_config::{Change, KEYS};
use kube_kms_core::fault::Reason;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// All pages for readers, by their path from the root.
fn pages() -> Vec<String> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut all: Vec<String> = docs.filter(|n| n.ends_with(".md")).map(|n| format!("docs/{n}")).collect();
    all.extend(
        [
            "README.md",
            "ARCHITECTURE.md",
            "SECURITY.md",
            "CONTRIBUTING.md",
            "RELEASING.md",
            "tests/README.md",
            "benches/README.md",
        ]
        .map(str::to_owned),
    );
    assert!(all.len() > 12);
    all
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    words
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_between_our_pages_leads_somewhere() {
    let mut wrong = Vec::new();
    for name in pages() {
        let text = page(&name);
        let folder = root().join(&name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            if path.starts_with("http") {
                continue;
            }
            let target = if path.is_empty() { root().join(&name) } else { folder.join(path) };
            let there = target.exists()
                && (fragment.is_empty()
                    || std::fs::read_to_string(&target)
                        .is_ok_and(|t| t.lines().any(|l| l.starts_with('#') && anchor(l) == fragment)));
            if !there {
                wrong.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_reason_is_explained_with_its_code_and_phrase() {
    let text = page("docs/troubleshooting.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|l| l.starts_with("| `"))
        .map(|l| l.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() == 8)
        .collect();
    for reason in Reason::ALL {
        let named = format!("`{}`", reason.label());
        let of_it: Vec<_> = rows.iter().filter(|cells| cells[1] == named).collect();
        let [row] = of_it[..] else { panic!("{reason} has {} rows", of_it.len()) };
        assert_eq!((row[2], row[3]), (reason.class().code().label(), reason.phrase()), "{reason}");
        assert!(row[4..7].iter().all(|cell| cell.len() > 4), "{reason}: what it means, where to look, what to do");
    }
    assert_eq!(rows.len(), Reason::ALL.len(), "a row of a reason that is none");
}

/// The page with `made` between the marks of that name.
fn with_made(text: &str, mark: &str, made: &str) -> String {
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- end of {mark} -->\n"));
    let (before, rest) = text.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{begin}{made}{end}{after}")
}

/// `KUBE_KMS_BLESS=1` writes it anew.
#[test]
fn the_reference_of_the_configuration_has_the_table_of_the_code() {
    let text = page("docs/configuration.md");
    let table = with_made(&text, "keys", &kube_kms_config::markdown());
    let restart: Vec<String> =
        KEYS.iter().filter(|k| k.change == Change::Restart).map(|k| format!("- `{}`\n", k.path)).collect();
    let expected = with_made(&table, "keys that take a restart", &restart.concat());
    if std::env::var_os("KUBE_KMS_BLESS").is_some() {
        std::fs::write(root().join("docs/configuration.md"), &expected).unwrap();
        return;
    }
    for (there, of_code) in text.lines().zip(expected.lines()) {
        assert_eq!(there, of_code, "docs/configuration.md is not what the code says; KUBE_KMS_BLESS=1 writes it");
    }
    assert_eq!(text.len(), expected.len(), "docs/configuration.md; KUBE_KMS_BLESS=1 writes it");
}

/// Elsewhere there is a link: two pages had lists of their own, and both were wrong.
#[test]
fn what_needs_a_restart_is_listed_once() {
    for (name, link) in [("README.md", "docs/configuration.md"), ("docs/upgrade.md", "configuration.md")] {
        assert!(page(name).contains(&format!("({link}#what-needs-a-restart)")), "{name}");
        let lists = |line: &&str| line.contains("reload") && line.contains("`stateDir`");
        assert_eq!(page(name).lines().find(lists), None, "{name}: a list of its own");
    }
}

/// The numbers of a decision are those of the code.
#[test]
fn the_architecture_says_how_throttling_slows_unwraps_down() {
    let pace = page("src/service/pace.rs");
    let number = |name: &str| {
        let line = pace.lines().find(|l| l.contains(&format!("const {name}:"))).unwrap();
        line.split('=').nth(1).unwrap().chars().filter(|c| c.is_ascii_digit() || *c == '.').collect::<String>()
    };
    let says = format!("{} times as far apart", number("SLOWER"));
    let recovers = format!("half as far after {} s of answers", number("HALF_LIFE"));
    let decision = page("ARCHITECTURE.md");
    assert!(decision.contains(&says) && decision.contains(&recovers), "{says}; {recovers}");
}

/// Folders of the repository, as a comment or a page names a path from its root.
const FOLDERS: [&str; 6] = ["src/", "tests/", "docs/", "benches/", "deploy/", "proto/"];

/// Every file that people write, by its path from the root, but for what is not ours to word: inputs of the fuzzer, locks.
fn written() -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let skipped = ["target", ".git", ".kube-kms", ".venv", "corpus", "found", "artifacts"];
            if entry.file_type().unwrap().is_dir() {
                if !skipped.contains(&name.as_str()) {
                    walk(&entry.path(), found);
                }
            } else {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    let kinds = ["rs", "md", "toml", "py", "sh", "yml", "yaml", "go", "proto"];
    let named = ["Makefile", "Containerfile", "run"];
    let ours = |path: &&PathBuf| {
        path.extension().is_some_and(|e| kinds.contains(&e.to_str().unwrap()))
            || named.contains(&path.file_name().unwrap().to_str().unwrap())
    };
    let from_root = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.iter().filter(ours).map(from_root).collect()
}

/// What of a line is for people: all of it in a page, the comment elsewhere.
fn prose<'a>(file: &str, line: &'a str) -> &'a str {
    let mark = match file.rsplit('.').next() {
        Some("md") => return line,
        Some("rs" | "go" | "proto") => "//",
        _ => "#",
    };
    line.find(mark).map_or("", |at| &line[at..])
}

/// The paths in a line, each as far as it has no wildcard.
fn paths_in(line: &str) -> Vec<&str> {
    let part = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    line.split(|c: char| !part(c))
        .filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)))
        .map(|word| word.trim_end_matches(['.', '-', '_']))
        .collect()
}

#[test]
fn every_path_that_a_comment_or_a_page_names_exists() {
    assert_eq!(paths_in("(see src/README.md, `docs/*.md`; https://x.y/src/z, a/tests/b)"), ["src/README.md", "docs/"]);
    let (mut seen, mut wrong) = (0, Vec::new());
    for file in written() {
        let text = page(&file);
        for (number, line) in text.lines().enumerate() {
            // What a `{}` or a `*` stands for within a name is anything.
            for path in paths_in(prose(&file, line)) {
                let ends = line.find(path).map(|at| &line[at + path.len()..]).unwrap_or_default();
                let path = if ends.starts_with(['{', '*', '_', '-']) { path.rsplit_once('/').unwrap().0 } else { path };
                seen += 1;
                if !root().join(path).exists() {
                    wrong.push(format!("{file}:{}: {path}", number + 1));
                }
            }
        }
    }
    assert!(seen > 200, "only {seen} paths found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Who has a second try is known by name, and the names are those of tests.
#[test]
fn every_test_that_is_tried_twice_is_there_by_its_whole_name() {
    let config = page(".config/nextest.toml");
    let (mut second, mut named) = (0, 0);
    for table in config.split("\n[[").skip(1) {
        second += table.lines().filter(|l| l.starts_with("retries = ")).count();
        let filter = table.split("'''").nth(1).unwrap();
        for term in filter.split(" or ").map(str::trim) {
            let name = term.strip_prefix("test(=").and_then(|t| t.strip_suffix(')'));
            let name = name.unwrap_or_else(|| panic!("{term} may be more tests than one"));
            let function = format!("fn {}(", name.rsplit("::").next().unwrap());
            let is_there = |file: &String| file.ends_with(".rs") && page(file).contains(&function);
            assert!(written().iter().any(is_there), "there is no {name}");
            named += 1;
        }
    }
    assert!(second == 1 && (1..=5).contains(&named), "{named} tests may be tried twice");
    assert!(!config.split("\n[[").next().unwrap().contains("retries"), "a second try for all");
}

/// Documents that somebody had at hand and a reader of the repository has not.
#[test]
fn no_comment_cites_a_document_that_is_not_here() {
    let mut wrong = Vec::new();
    for file in written() {
        for (number, line) in page(&file).lines().enumerate() {
            let text = prose(&file, line);
            let cites = text.contains("(design:")
                || text.split_once("SPEC:").is_some_and(|(_, of)| {
                    of.split([';', '.', ' ']).collect::<Vec<_>>().windows(2).any(|pair| {
                        pair[0] == "design"
                            || pair[0] == "contract" && pair[1].starts_with(|c: char| c.is_ascii_digit())
                    })
                });
            if cites && file != "tests/docs.rs" {
                wrong.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `kube-kms word` and `kmsctl word` in code, over all pages.
#[test]
fn every_command_that_a_page_names_is_one() {
    let site = Site::local();
    for (program, name) in [(BINARY, "kube-kms "), (KMSCTL, "kmsctl ")] {
        let help = String::from_utf8(site.process(program, &["--help"]).output().unwrap().stdout).unwrap();
        let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let commands: BTreeSet<&str> = list.lines().filter_map(|l| l.split_whitespace().next()).collect();
        let mut seen = BTreeSet::new();
        for page_name in pages() {
            for code in page(&page_name).split('`').skip(1).step_by(2).flat_map(str::lines) {
                for word in code.split(name).skip(1).filter(|_| !code.contains("systemctl")) {
                    let word: String = word.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
                    if !word.is_empty() && !word.starts_with('-') {
                        assert!(commands.contains(word.as_str()), "{page_name}: {code}: {word} is no command");
                        seen.insert(word);
                    }
                }
            }
        }
        assert!(seen.len() > 3, "{name}: {seen:?}");
    }
}

/// The commands of the blocks that are to be tried.
fn to_try(text: &str) -> Vec<String> {
    let blocks = text.split("```sh try\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_readme_says_to_try_works_as_it_is_pasted() {
    let commands = to_try(&page("README.md"));
    assert!(commands.len() >= 6, "{commands:?}");
    let site = Site::local();
    let running = site.start().await;
    let clone = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(clone.path().join("target/debug")).unwrap();
    let link = |from: &Path, to: &str| std::os::unix::fs::symlink(from, clone.path().join(to)).unwrap();
    link(Path::new(BINARY), "target/debug/kube-kms");
    link(Path::new(KMSCTL), "target/debug/kmsctl");
    link(site.dir(), ".kube-kms");
    let has_curl = Command::new("curl").arg("--version").output().is_ok();
    let http = running.http_address().await;
    for command in commands {
        if command.starts_with("curl") && !has_curl {
            crate::support::skip::skipped("what_the_readme_says_to_try", "there is no curl");
            continue;
        }
        // Only this differs from what is pasted: tests have no fixed port, and `bench` is tried at length elsewhere.
        let shortened = command.replace("127.0.0.1:9464", &http).replace("--duration 5s", "--duration 1s");
        let (dir, folder) = (clone.path().to_owned(), site.dir().to_owned());
        let done = tokio::task::spawn_blocking(move || {
            let mut shell = Command::new("sh");
            shell.args(["-c", &shortened]).current_dir(dir).env("HOME", folder);
            shell.output().unwrap()
        });
        let output = done.await.unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command}: {}\n{out}\n{err}", output.status);
        assert!(!out.trim().is_empty(), "{command} printed nothing");
    }
    running.until_ok().await;
}

#[test]
fn the_two_commands_of_the_readme_are_there() {
    let makefile = page("Makefile");
    for target in ["run", "test"] {
        assert!(page("README.md").contains(&format!("\nmake {target} ")), "make {target}");
        assert!(makefile.contains(&format!("\n{target}: ")), "make {target}");
    }
}

/// Rounded up to the second, with the defaults and with a KMS that answers at once.
#[test]
fn the_pages_give_the_times_that_the_code_bounds() {
    use kube_kms_core::health::noticed_within;
    use kube_kms_core::rotation::rotation_seen_within;
    use std::time::Duration;
    let config = kube_kms_config::parse("kek: {local: {keyring: /k}}").unwrap().settings;
    let (interval, timeout) = (config.probe_interval, config.probe_timeout);
    let seconds = |time: Duration| format!("within {} s", time.as_secs_f64().ceil());
    let noticed = |timeout| seconds(noticed_within(interval, timeout, config.policy.confirmations));
    for name in ["SECURITY.md", "docs/failure-modes.md"] {
        assert!(page(name).contains(&noticed(timeout)), "{name}: {}", noticed(timeout));
    }
    let at_once = noticed(Duration::ZERO).replace("within ", "");
    assert!(page("SECURITY.md").contains(&format!("({at_once} when the KMS answers at once)")), "{at_once}");
    let most = rotation_seen_within(interval, timeout, config.observations).as_secs_f64().ceil();
    let at_once = (interval + Duration::from_secs(2) * (config.observations - 1)).mul_f64(1.1);
    let expected = format!("{} when the KMS answers at once, {most} s at most", seconds(at_once));
    assert!(page("docs/rotation.md").contains(&expected), "{expected}");
}
