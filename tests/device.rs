use heatfs::device::real::RealDevice;
use heatfs::device::{AlignedBuf, Device, OpenMode};

#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let d = RealDevice::at(dir.path()).unwrap();
    println!("{:?} {:?}", d.probe().unwrap(), d.space().unwrap());
    d.create_dir_all("a/b/c").unwrap();
    let f = d.open("a/b/c/f", OpenMode { create: true, exclusive: true, direct: true, dsync: true }).unwrap();
    let mut b = AlignedBuf::zeroed(8192);
    b.fill(3);
    f.write_all_at(&b, 4096).unwrap();
    f.sync_data().unwrap();
    f.set_len(5000).unwrap();
    assert_eq!(f.read_at(&mut b, 0).unwrap(), 5000);
    assert_eq!(d.list("a/b/c").unwrap(), ["f"]);
    assert_eq!(d.list("").unwrap(), ["a"]);
    d.rename("a/b/c/f", "a/g").unwrap();
    d.sync_dir("a").unwrap();
    d.sync_dir("").unwrap();
    d.sync_all().unwrap();
    d.remove_file("a/g").unwrap();
    assert!(!d.exists("a/g").unwrap());
    assert!(d.open("../x", OpenMode::default()).is_err());
}
