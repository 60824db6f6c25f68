//! Plugins that misbehave, in the place of the real one: a script between the drill and the binary (`--plugin-command`, hidden).
//!
//! Each is the real binary with one thing wrong around it, so that it answers everything else as it should.

use super::run::{Drill, drill};
use crate::support::site::{BINARY, Site};

/// `$dir`, `$sandbox`, `$keyring` and `$config` are there, and `own FILE` serves with that keyring in the place of the shared one.
const PROLOGUE: &str = r#"
config=$3
dir=$(dirname "$config")
sandbox=$(dirname "$dir")
keyring=$sandbox/keyring.json
own() {
    sed "s|$keyring|$1|" "$config" > "$dir/own.yaml"
    exec "$BIN" serve --config "$dir/own.yaml"
}
"#;

fn with(script: &str) -> Drill {
    let site = Site::local();
    let path = site.dir().join("plugin.sh");
    std::fs::write(&path, format!("umask 077\nBIN={BINARY}\n{PROLOGUE}\n{script}\n")).unwrap();
    let drill = drill(&site, &["--objects", "20", "--plugin-command", &format!("sh {}", path.display())]);
    println!("{}", drill.failed());
    drill
}

/// What the scripts of this file are without a vice.
const SERVE: &str = r#"exec "$BIN" serve --config "$config""#;

#[test]
fn the_script_alone_breaks_nothing() {
    let drill = with(SERVE);
    assert_eq!(drill.status, 0, "{}", drill.failed());
    drill.held_but(&[]);
}

#[test]
fn a_plugin_that_never_follows_a_rotation_fails_to_converge() {
    let drill = with(
        r#"
[ -f "$dir/own.json" ] || cp -p "$keyring" "$dir/own.json"
own "$dir/own.json"
"#,
    );
    assert_eq!(drill.status, 6);
    for failed in ["4.1", "4.2", "4.3", "5.1", "7.1"] {
        assert_eq!(drill.verdict(failed), "did not hold", "{failed}: {}", drill.failed());
    }
    for held in [1, 2, 3, 6] {
        assert_eq!(drill.step(held), "held", "step {held}: {}", drill.failed());
    }
    assert_eq!(drill.step(8), "not tried", "retiring a key that everything is under");
    assert_eq!(drill.verdict("5.4"), "held");
}

#[test]
fn a_plugin_that_goes_back_to_the_old_key_fails_to_converge() {
    let drill = with(
        r#"
case "$dir" in */b) ;; *) exec "$BIN" serve --config "$config" ;; esac
cp -p "$keyring" "$dir/old.json"
"$BIN" serve --config "$config" &
plugin=$!
seen() { grep -o 'k1-[0-9a-f]*' "$dir/state/state.json" 2> /dev/null | sort -u | wc -l; }
while [ "$(seen)" -lt 2 ]; do sleep 0.1; done
sleep 4.5
kill -9 $plugin
wait $plugin
rm -rf "$dir/state"
own "$dir/old.json"
"#,
    );
    assert_eq!(drill.status, 6);
    for failed in ["4.2", "10.1", "10.2"] {
        assert_eq!(drill.verdict(failed), "did not hold", "{failed}: {}", drill.failed());
    }
    for held in ["4.1", "5.3"] {
        assert_eq!(drill.verdict(held), "held", "{held}: {}", drill.failed());
    }
    assert!(drill.claim("10.1")["detail"].as_str().unwrap().contains("node b went back to k1-"));
}

#[test]
fn a_plugin_that_has_lost_the_old_key_fails_to_open_what_is_old() {
    let drill = with(
        r#"
case "$dir" in */fresh-*) ;; *) exec "$BIN" serve --config "$config" ;; esac
cp -p "$keyring" "$dir/own.json" 2> /dev/null
for version in $("$BIN" keyring list --file "$dir/own.json" --output json | sed -n 's/.*"version": "\([^"]*\)".*/\1/p'); do
    "$BIN" keyring retire --file "$dir/own.json" "$version"
done
own "$dir/own.json"
"#,
    );
    assert_eq!(drill.status, 6);
    // The object that step 7 leaves behind cannot be brought back on such a node either.
    drill.held_but(&["5.3", "8.6", "9.6"].map(|number| (number, "did not hold")));
}

#[test]
fn a_plugin_that_forgets_its_key_when_it_is_killed_fails_to_restart() {
    let drill = with(
        r#"
if [ -f "$dir/started" ]; then
    "$BIN" keyring init --file "$dir/other.json"
    rm -rf "$dir/state"
    own "$dir/other.json"
fi
touch "$dir/started"
exec "$BIN" serve --config "$config"
"#,
    );
    assert_eq!(drill.status, 6);
    for failed in ["6.2", "6.6", "7.1"] {
        assert_eq!(drill.verdict(failed), "did not hold", "{failed}: {}", drill.failed());
    }
    for held in 1..=5 {
        assert_eq!(drill.step(held), "held", "step {held}: {}", drill.failed());
    }
    assert_eq!(drill.verdict("6.1"), "held");
}

#[test]
fn a_plugin_that_shows_an_outage_at_once_fails_in_the_outage_and_nowhere_else() {
    let drill = with(
        r#"
sed 's|"grace": "8s"|"grace": "0s"|' "$config" > "$dir/own.yaml"
exec "$BIN" serve --config "$dir/own.yaml"
"#,
    );
    assert_eq!(drill.status, 6);
    drill.held_but(&[("9.2", "did not hold")]);
}

#[test]
fn a_plugin_that_stops_writing_in_an_outage_fails_in_the_outage_and_nowhere_else() {
    let drill = with(
        r#"
sed 's|"grace": "8s"|"grace": "8s", "stopAfter": "8s"|' "$config" > "$dir/own.yaml"
exec "$BIN" serve --config "$dir/own.yaml"
"#,
    );
    assert_eq!(drill.status, 6);
    for failed in ["9.3", "9.4"] {
        assert_eq!(drill.verdict(failed), "did not hold", "{failed}: {}", drill.failed());
    }
    assert_eq!(drill.verdict("9.2"), "held", "{}", drill.failed());
    assert!((1..=8).all(|step| drill.step(step) == "held"), "{}", drill.failed());
}

#[test]
fn a_plugin_that_does_not_start_fails_the_preflight_and_leaves_the_rest_untried() {
    let drill = with("echo 'cause: no such thing' >&2\nexit 3");
    assert_eq!(drill.status, 6);
    assert!(drill.claim("1.1")["detail"].as_str().unwrap().contains("cause: no such thing"), "{}", drill.failed());
    let mut steps = ["not tried"; 10];
    (steps[0], steps[9]) = ("did not hold", "held");
    assert_eq!(drill.steps(), steps);
    assert_eq!(drill.verdict("10.3"), "held", "it is cleaned up all the same");
}
