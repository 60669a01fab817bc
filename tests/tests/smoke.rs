//! x
#[test]
fn loads() {
    let p = lb_tests::program::Program::load(Default::default()).unwrap();
    println!("{}", p.verified_instructions().unwrap());
}
