use super::*;

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lbctl-admin-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn web(backend: &str) -> BackendKey {
    BackendKey {
        pool: "web".into(),
        backend: backend.into(),
    }
}

#[test]
fn decisions_survive_a_restart_until_they_are_cleared() {
    let directory = Directory::new("restart");
    let (mut store, warning) = AdminStore::open(&directory.0).unwrap();
    assert_eq!(warning, None);
    store.decide(&web("a"), AdminAction::Drain, 100).unwrap();
    store
        .decide(&web("a"), AdminAction::Weight { weight: 7 }, 110)
        .unwrap();
    store.decide(&web("b"), AdminAction::Disable, 120).unwrap();

    let (mut store, warning) = AdminStore::open(&directory.0).unwrap();
    assert_eq!(warning, None);
    let a = store.of(&web("a"));
    assert_eq!(
        (a.admin_state(), a.weight, a.since),
        (AdminState::Draining, Some(7), 100)
    );
    assert_eq!(store.of(&web("b")).admin_state(), AdminState::Disabled);

    store.decide(&web("a"), AdminAction::Clear, 200).unwrap();
    let (store, _) = AdminStore::open(&directory.0).unwrap();
    assert_eq!(store.of(&web("a")), Override::default());
}

#[test]
fn draining_twice_does_not_start_the_time_out_anew() {
    let once = Override::default().after(AdminAction::Drain, 100);
    assert_eq!(once.after(AdminAction::Drain, 150).since, 100);
    assert_eq!(once.after(AdminAction::Disable, 150).since, 150);
}

#[test]
fn a_corrupt_file_is_set_aside_and_told_about() {
    let directory = Directory::new("corrupt");
    fs::create_dir_all(&directory.0).unwrap();
    for text in ["{\"version\": 1, \"poo", "{\"version\": 9, \"pools\": {}}"] {
        fs::write(directory.0.join(FILE), text).unwrap();
        let (mut store, warning) = AdminStore::open(&directory.0).unwrap();
        assert!(warning.unwrap().contains("admin.json.corrupt"));
        assert_eq!(
            fs::read_to_string(directory.0.join("admin.json.corrupt")).unwrap(),
            text
        );
        assert_eq!(store.of(&web("a")), Override::default());
        store.decide(&web("a"), AdminAction::Disable, 1).unwrap();
        assert_eq!(AdminStore::open(&directory.0).unwrap().1, None);
    }
}

#[test]
fn a_decision_that_cannot_be_written_does_not_hold() {
    let directory = Directory::new("unwritable");
    let (mut store, _) = AdminStore::open(&directory.0).unwrap();
    // A directory in the way of the new file stops root, too.
    fs::create_dir(directory.0.join("admin.json.new")).unwrap();
    store
        .decide(&web("a"), AdminAction::Disable, 1)
        .unwrap_err();
    assert_eq!(store.of(&web("a")), Override::default());
}
