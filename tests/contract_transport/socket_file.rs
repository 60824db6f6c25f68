//! Item 15: who may touch the socket.

use crate::support::site::{Running, Site};
use kms_v2_client::kms::Target;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

async fn start_at(site: &mut Site, path: &Path, more: &str) -> Running {
    site.listen(&format!("{{socket: {}{more}}}", path.display()));
    let mut running = site.spawn();
    running.target = Target::File(path.to_owned());
    running.until_ok().await;
    running
}

#[tokio::test]
async fn item_15_by_default_the_socket_and_a_directory_made_for_it_are_for_the_owner_only() {
    let mut site = Site::local();
    let path = site.dir().join("made/for it/kms.sock");
    let running = start_at(&mut site, &path, "").await;
    let socket = std::fs::metadata(&path).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.mode() & 0o7777, 0o600);
    assert_eq!(socket.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&site.dir().join("made")), 0o700);
    assert!(running.stop().await.success());
    assert!(!path.exists(), "our socket goes with us");
}

#[tokio::test]
async fn item_15_a_configured_mode_is_exact_and_opens_the_directory_to_no_more_than_that() {
    for (asked, directory) in [(0o660, 0o750), (0o666, 0o755)] {
        let mut site = Site::local();
        let path = site.dir().join("made/kms.sock");
        let _running = start_at(&mut site, &path, &format!(", mode: '{asked:04o}'")).await;
        assert_eq!(mode(&path), asked);
        assert_eq!(mode(path.parent().unwrap()), directory);
    }
}

#[tokio::test]
async fn item_15_a_directory_where_strangers_could_replace_the_socket_is_refused_in_words() {
    use std::os::unix::fs::PermissionsExt;
    let mut site = Site::local();
    let open = site.dir().join("open");
    std::fs::create_dir(&open).unwrap();
    site.listen(&format!("{{socket: {}}}", open.join("kms.sock").display()));
    for (mode, why) in [(0o777, "everybody may write to"), (0o1777, "everybody may make files in")] {
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut running = site.spawn();
        assert_eq!(running.wait().await.code(), Some(5));
        let said = running.log();
        assert!(said.contains(why) && said.contains("hint: "), "{said}");
    }
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&open, Some(5555), None).unwrap();
        let mut running = site.spawn();
        assert_eq!(running.wait().await.code(), Some(5));
        assert!(running.log().contains("belongs to user 5555"), "{}", running.log());
        std::os::unix::fs::chown(&open, Some(0), Some(5555)).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o770)).unwrap();
        site.spawn().until_log("whoever is in this group can put a socket of his own").await;
    }
}
