use super::*;
use crate::model::Secret;

fn check(full: u32) -> Snmp {
    Snmp {
        oid: vec![1, 3, 6, 1, 4, 1, 2021, 10, 1, 5, 1],
        full,
        access: SnmpAccess::Community(Secret("public".into())),
    }
}

#[test]
fn a_value_is_a_part_of_what_is_full() {
    let of = |full, value: f64| {
        let found = judge(&check(full), &value).unwrap();
        (found.load, found.words)
    };
    assert_eq!(
        of(400, 100.0),
        (Some(Load::Busy(25)), "100 of 400: 25 % busy".to_owned())
    );
    assert_eq!(of(100, 0.0).0, Some(Load::Busy(0)));
    assert_eq!(of(1, 1e12).0, Some(Load::Busy(255)));
}

#[test]
fn numbers_and_text_that_is_one_are_read() {
    for (value, expected) in [
        (Value::Integer(7), Some(7.0)),
        (Value::Integer(-7), None),
        (Value::Unsigned32(9), Some(9.0)),
        (Value::Counter64(1 << 40), Some((1_u64 << 40) as f64)),
        (Value::OctetString(b" 0.42\n"), Some(0.42)),
        (Value::OctetString(b"inf"), None),
        (Value::OctetString(b"much"), None),
        (Value::NoSuchInstance, None),
    ] {
        assert_eq!(number(&value), expected, "{value:?}");
    }
}

#[test]
fn nobody_gets_to_see_the_community() {
    let shown = format!("{:?}", check(1));
    assert!(!shown.contains("public"), "{shown}");
    let json = serde_json::to_string(&check(1).access).unwrap();
    assert!(!json.contains("public"), "{json}");
}

#[test]
fn a_password_is_a_files_line() {
    let file = std::env::temp_dir().join(format!("lbctl-snmp-{}", std::process::id()));
    fs::write(&file, "se cret \n").unwrap();
    assert_eq!(password(&file).unwrap(), b"se cret ");
    fs::write(&file, "\n").unwrap();
    assert!(password(&file).unwrap_err().contains("no password in it"));
    fs::remove_file(&file).unwrap();
    let missing = password(&file).unwrap_err();
    assert!(missing.contains("No such file"), "{missing}");
}
