//! What a release and CI must not do: the workflows and `.ci/release-ready` as they are in the repository.
//!
//! The workflows are text here: GitHub runs them, and nobody else can.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every workflow with its name.
fn workflows() -> Vec<(String, String)> {
    let files = fs::read_dir(root().join(".github/workflows")).unwrap();
    let names: Vec<String> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.len() >= 3, "{names:?}");
    names.into_iter().map(|name| (name.clone(), read(&format!(".github/workflows/{name}")))).collect()
}

/// `uses: owner/name@<commit> # <version>`.
fn is_pinned(used: &str) -> bool {
    let Some((action, version)) = used.split_once(" # v") else { return false };
    let commit = action.split_once('@').map_or("", |(_, commit)| commit);
    commit.len() == 40
        && commit.chars().all(|c| c.is_ascii_hexdigit())
        && version.starts_with(|c: char| c.is_ascii_digit())
}

#[test]
fn actions_are_pinned_by_commit_and_tools_by_version() {
    assert!(is_pinned("a/b@0123456789012345678901234567890123456789 # v1.2.3"));
    for loose in ["a/b@v4", "a/b@0123456 # v1", "a/b@0123456789012345678901234567890123456789"] {
        assert!(!is_pinned(loose), "{loose}");
    }
    let mut wrong = Vec::new();
    for (name, text) in workflows() {
        let used = text.lines().filter_map(|l| l.trim().trim_start_matches("- ").strip_prefix("uses: "));
        wrong.extend(used.filter(|used| !is_pinned(used)).map(|used| format!("{name}: {used}")));
    }
    let scripts = ["Makefile", ".ci/run", "tests/run.sh"].map(|name| (name.to_owned(), read(name)));
    for (name, text) in workflows().into_iter().chain(scripts) {
        for line in text.lines().filter(|l| l.contains("cargo install") || l.contains("$(CARGO) install")) {
            if !line.contains("--locked") || !line.contains("--version ") {
                wrong.push(format!("{name}: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The jobs of a workflow by name: what is indented by two blanks after `jobs:`.
fn jobs(workflow: &str) -> Vec<(&str, String)> {
    let mut jobs: Vec<(&str, String)> = Vec::new();
    for line in workflow.split_once("\njobs:\n").unwrap().1.lines() {
        match line.strip_prefix("  ").and_then(|l| l.strip_suffix(':')).filter(|name| !name.starts_with(' ')) {
            Some(name) => jobs.push((name, String::new())),
            None => jobs.last_mut().unwrap().1.push_str(&format!("{line}\n")),
        }
    }
    jobs
}

#[test]
fn no_job_that_can_write_builds_or_installs() {
    let mut may_write = 0;
    for (name, text) in workflows() {
        let before = text.split("\njobs:\n").next().unwrap();
        assert!(before.contains("permissions: {}") || before.contains("permissions:\n  contents: read\n"), "{name}");
        assert!(!before.contains(": write") && !text.contains("pull_request_target"), "{name}");
        for (job, steps) in jobs(&text) {
            if !steps.contains(": write") {
                continue;
            }
            may_write += 1;
            for builds in
                ["cargo ", "make ", "buildx build", "docker build ", "actions/checkout", "apt-get", "npm ", ".ci/"]
            {
                assert!(!steps.contains(builds), "{name}: job {job} can write, and has {builds:?}");
            }
        }
    }
    assert!(may_write >= 3, "the search finds no job that can write, where there are some");
}

#[test]
fn the_release_asks_first_whether_the_tree_is_ready() {
    let text = read(".github/workflows/release.yml");
    let jobs = jobs(&text);
    let (_, check) = jobs.iter().find(|(name, _)| *name == "check").unwrap();
    let (ready, run) = (check.find(".ci/release-ready \"$TAG\"").unwrap(), check.find(".ci/run\n").unwrap());
    assert!(ready < run);
    for (name, steps) in jobs.iter().filter(|(name, _)| *name != "check") {
        assert!(steps.trim_start().starts_with("needs:"), "{name} does not wait for check, or for who does");
    }
}

/// A clone with what the script looks at, in it an identity to sign with.
struct Clone {
    dir: tempfile::TempDir,
}

impl Clone {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clone = Self { dir };
        for name in
            ["SECURITY.md", "Cargo.toml", "CHANGELOG.md", ".github/ISSUE_TEMPLATE/config.yml", ".ci/release-ready"]
        {
            let to = clone.dir.path().join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(root().join(name), to).unwrap();
        }
        clone
    }

    fn edit(&self, name: &str, edit: impl FnOnce(String) -> String) {
        let path = self.dir.path().join(name);
        fs::write(&path, edit(fs::read_to_string(&path).unwrap())).unwrap();
    }

    /// Runs it here. Nobody's git settings count.
    fn run(&self, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> (bool, String) {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.dir.path()).envs(environment.iter().copied());
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "A").env(format!("GIT_{who}_EMAIL"), "a@example.org");
        }
        let output = command.output().unwrap_or_else(|e| panic!("{program}: {e}"));
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    fn ready(&self, tag: &str, environment: &[(&str, &str)]) -> (bool, String) {
        self.run(&self.dir.path().join(".ci/release-ready").display().to_string(), &[tag], environment)
    }

    fn git(&self, arguments: &[&str]) {
        let (good, said) = self.run("git", arguments, &[]);
        assert!(good, "git {arguments:?}: {said}");
    }

    /// A new key in this file; its public half as git wants it among the allowed signers.
    fn key(&self, name: &str) -> String {
        let file = self.dir.path().join(name);
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file).status().unwrap();
        assert!(made.success());
        format!("a@example.org {}", fs::read_to_string(file.with_extension("pub")).unwrap())
    }

    fn signed_tag(&self, tag: &str, key: &str) {
        let key = format!("user.signingkey={}", self.dir.path().join(key).display());
        self.git(&["-c", "gpg.format=ssh", "-c", &key, "tag", "--force", "--sign", "--message", tag, tag]);
    }
}

#[test]
fn a_tree_with_placeholders_or_a_tag_of_a_stranger_is_not_ready() {
    let clone = Clone::new();
    let placeholders = ["SECURITY.md", "Cargo.toml", ".github/ISSUE_TEMPLATE/config.yml"];
    let (ready, said) = clone.ready("", &[]);
    for name in placeholders {
        let is_one = read(name).contains(".invalid");
        assert_eq!(said.contains(&format!("{name} has a placeholder")), is_one, "{said}");
        assert!(!is_one || !ready, "{said}");
        // Whatever stands there now, a placeholder is refused and a real address is not.
        clone.edit(name, |text| text.replace(".invalid", ".example"));
    }
    let (ready, said) = clone.ready("", &[]);
    assert!(ready, "{said}");
    for name in placeholders {
        clone.edit(name, |text| text + "# https://kube-kms.invalid\n");
        let (ready, said) = clone.ready("", &[]);
        assert!(!ready && said.contains(&format!("{name} has a placeholder: https://kube-kms.invalid")), "{said}");
        clone.edit(name, |text| text.replace("# https://kube-kms.invalid\n", ""));
    }

    if Command::new("ssh-keygen").arg("-?").output().is_err() {
        return crate::support::skipped(
            "a_tree_with_placeholders_or_a_tag_of_a_stranger_is_not_ready",
            "needs ssh-keygen",
        );
    }
    let (ours, _strangers) = (clone.key("ours"), clone.key("stranger"));
    clone.git(&["init", "--quiet"]);
    clone.git(&["add", "Cargo.toml"]);
    clone.git(&["commit", "--quiet", "--message", "all"]);
    let tag = format!("v{}", env!("CARGO_PKG_VERSION"));
    let good = [("RELEASE_SIGNERS", ours.as_str()), ("RUST_IMAGE", "rust@sha256:0123")];
    clone.signed_tag(&tag, "ours");
    let (ready, said) = clone.ready(&tag, &good);
    assert!(!ready && said.contains("CHANGELOG.md has no heading"), "{said}");
    clone.edit("CHANGELOG.md", |text| format!("{text}\n## {} - 2026-01-01\n", env!("CARGO_PKG_VERSION")));
    let (ready, said) = clone.ready(&tag, &good);
    assert!(ready && said.contains(&format!("ready: {tag}")), "{said}");

    for (left_out, complaint) in [(0, "RELEASE_SIGNERS is empty"), (1, "RUST_IMAGE is not a base image by digest")] {
        let rest = [good[1 - left_out], ("NOTHING", "")];
        let (ready, said) = clone.ready(&tag, &rest);
        assert!(!ready && said.contains(complaint), "{said}");
    }
    let (ready, said) = clone.ready("v99.0.0", &good);
    assert!(!ready && said.contains("the tag is v99.0.0 and Cargo.toml says"), "{said}");
    clone.signed_tag(&tag, "stranger");
    let (ready, said) = clone.ready(&tag, &good);
    assert!(!ready && said.contains("is not signed by anybody in RELEASE_SIGNERS"), "{said}");
    clone.git(&["tag", "--force", "--annotate", "--message", "x", &tag]);
    assert!(!clone.ready(&tag, &good).0, "a tag that nobody signed");
}

/// The compiler that lints is the one that releases; what is promised as the oldest is what CI builds with.
#[test]
fn one_compiler_lints_and_releases() {
    let pinned = read("rust-toolchain.toml");
    let version = pinned.lines().find_map(|l| l.strip_prefix("channel = ")).unwrap().trim_matches('"').to_owned();
    assert!(read("Containerfile").contains(&format!("RUST_IMAGE=rust:{version}-alpine\n")), "{version}");
    assert!(read("Makefile").contains("\nmsrv: "), "no job for the oldest compiler");
}
