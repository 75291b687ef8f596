//! The situation table row by row, what upstream leaves behind, and broken chains: one plan or finding each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::simulator::{Image, Item, Start, World, full, overlay, world};
use super::*;

/// A clone with the snapshots 0, 1 and 2; the current file is 3.
fn three() -> World {
    let mut world = world(Start::Clone);
    for k in 0..3 {
        let plan = world.chain().create(k).expect("fine");
        world.run(&plan);
    }
    world
}

fn says(plan: Result<Plan, Refusal>) -> String {
    match plan {
        Ok(plan) => plan.to_string().replace("/ds/0/7/", "").replace("disk.0.snap/", ""),
        Err(refusal) => format!("Refused: {refusal}").replace("/ds/0/7/", "").replace("disk.0.snap/", ""),
    }
}

#[test]
fn create_freezes_the_current_file() {
    let world = world(Start::Clone);
    assert_eq!(says(world.chain().create(0)), "Make the empty layer 1 on 0\nPoint disk.0 to 1\n");
    let plan = world.chain().create(0).expect("fine");
    let undo: Vec<_> = plan.steps.iter().flat_map(|one| &one.undo).map(ToString::to_string).collect();
    assert_eq!(undo, ["Remove /ds/0/7/disk.0.snap/1", "Point /ds/0/7/disk.0 to disk.0.snap/0"]);
}

#[test]
fn the_disk_s_link_is_put_back_in_its_own_words() {
    let mut world = world(Start::Clone);
    for text in ["/ds//0/7/disk.0.snap/0", "./disk.0.snap/../disk.0.snap/0"] {
        world.link("/ds/0/7/disk.0", text);
        let plan = world.chain().create(0).expect("fine");
        let back = Step::Link { link: "/ds/0/7/disk.0".into(), target: text.into() };
        assert_eq!(plan.steps.iter().flat_map(|one| &one.undo).last(), Some(&back));
    }
}

#[test]
fn create_notes_where_the_data_is_when_the_current_file_has_another_number() {
    let world = world(Start::Clone);
    assert_eq!(
        says(world.chain().create(4)),
        "Write 0 into 4.current\nMake the empty layer 5 on 0\nPoint disk.0 to 5\n"
    );
}

#[test]
fn create_makes_a_chain_of_a_plain_disk() {
    assert_eq!(
        says(world(Start::Plain).chain().create(0)),
        "Make the folder of layers disk.0.snap\nPoint disk.0.snap to .\nGive disk.0 the second name 0\n\
         Make the empty layer 1 on 0\nPoint disk.0 to 1\n"
    );
    let mut odd = world(Start::Plain);
    odd.put("/ds/0/7/disk.0", overlay("../../1/image"));
    assert!(says(odd.chain().create(0)).contains("cannot become a layer"));
}

#[test]
fn create_live_lets_the_domain_switch_before_the_link_does() {
    let mut world = three();
    world.boot();
    assert_eq!(
        says(world.chain().create_live(3, &world.live())),
        "Make the empty layer 4 on 3\nHave the domain write to 4\nPoint disk.0 to 4\n"
    );
    let plan = world.chain().create_live(3, &world.live()).expect("fine");
    let undo: Vec<_> = plan.steps.iter().flat_map(|one| &one.undo).map(ToString::to_string).collect();
    assert_eq!(undo, ["Point /ds/0/7/disk.0 to disk.0.snap/3"], "the layer is the domain's to put away");
    // Killed before the link: all that is left to do is the link, whatever the guest has written.
    plan.steps[..2].iter().for_each(|one| world.apply(&one.step, usize::MAX));
    world.write(1, 77);
    assert_eq!(says(world.chain().create_live(3, &world.live())), "Point disk.0 to 4\n");
    assert_eq!(
        says(world.chain().create_live(4, &world.live())),
        "Point disk.0 to 4\nMake the empty layer 5 on 4\nHave the domain write to 5\nPoint disk.0 to 5\n"
    );
    // The VM was switched off instead: nobody can tell any more which file is meant.
    world.domain = None;
    for plan in [world.chain().create(3), world.chain().create(4), world.chain().revert(1)] {
        assert_eq!(
            says(plan),
            "Refused: 4 holds data above 3, which the disk names as its current file: a live snapshot was interrupted"
        );
    }
    assert_eq!(says(world.chain().delete(1)), "Put 2 on 0, its content stays\nRemove 1\n", "does not touch it");
}

#[test]
fn revert_begins_the_current_file_anew() {
    let mut world = three();
    let plan = world.chain().revert(1);
    assert_eq!(says(plan), "Make the empty layer 3 on 1\n");
    let plan = world.chain().revert(1).expect("fine");
    world.run(&plan);
    assert_eq!(says(world.chain().revert(1)), "(Nothing was written since snapshot 1)\n");
    world.write(0, 66);
    assert_eq!(says(world.chain().revert(1)), "Make the empty layer 3 on 1\n");
    assert_eq!(says(world.chain().revert(8)), "Refused: Snapshot 8 does not exist");
}

#[test]
fn delete_row_by_row_powered_off() {
    let mut world = three();
    assert_eq!(says(world.chain().delete(2)), "Put 3 on 1, its content stays\nRemove 2\n", "the current file's parent");
    assert_eq!(says(world.chain().delete(1)), "Put 2 on 0, its content stays\nRemove 1\n", "in the middle");
    assert_eq!(says(world.chain().delete(0)), "Put 1 on /ds/1/image, its content stays\nRemove 0\n", "the first");
    let revert = world.chain().revert(0).expect("fine");
    world.run(&revert);
    assert_eq!(says(world.chain().delete(2)), "Remove 2\n", "a leaf");
    let both = "Put 1 on /ds/1/image, its content stays\nPut 3 on /ds/1/image, its content stays\nRemove 0\n";
    assert_eq!(says(world.chain().delete(0)), both, "several children");
    assert_eq!(says(world.chain().delete(7)), "(Snapshot 7 is gone already)\n");
    let alone = simulator::world(Start::Standalone);
    let mut alone = World { domain: None, ..alone };
    let create = alone.chain().create(0).expect("fine");
    alone.run(&create);
    assert_eq!(says(alone.chain().delete(0)), "Make 1 stand alone, its content stays\nRemove 0\n");
}

#[test]
fn the_image_of_a_persistent_disk_stays_below() {
    let mut world = world(Start::Persistent);
    let create = world.chain().create(0).expect("fine");
    world.run(&create);
    assert_eq!(
        world.chain().delete(0).expect("fine").to_string(),
        "Name /ds/1/abc as the backing file of /ds/1/abc.snap/1\nRemove /ds/1/abc.snap/0\n"
    );
    world.boot();
    assert_eq!(
        world.chain().delete_live(0, &world.live()).expect("fine").to_string(),
        "Have the domain pull its whole chain into its current file\nRemove /ds/1/abc.snap/0\n"
    );
}

#[test]
fn delete_row_by_row_live() {
    let mut world = three();
    world.boot();
    let live = |world: &World, k| says(world.chain().delete_live(k, &world.live()));
    assert_eq!(live(&world, 2), "Have the domain pull what lies above 1 into its current file\nRemove 2\n");
    assert_eq!(
        live(&world, 1),
        "Write 2 into 1.deleting\nHave the domain merge 2 into 1\nWrite 1 into 2.current\nRemove 2\nRemove 1.deleting\n"
    );
    // A branch beside the domain's chain: 0 <- 1 <- 2, and 0 <- 3 current.
    world.domain = None;
    let revert = world.chain().revert(0).expect("fine");
    world.run(&revert);
    world.boot();
    assert_eq!(live(&world, 2), "Remove 2\n");
    assert_eq!(live(&world, 1), "Put 2 on 0, its content stays\nRemove 1\n", "not open by the domain");
    assert_eq!(
        live(&world, 0),
        "Have the domain pull what lies above /ds/1/image into its current file\n\
         Put 1 on /ds/1/image, its content stays\nRemove 0\n"
    );
    let create = world.chain().create_live(3, &world.live()).expect("fine");
    world.run(&create);
    assert_eq!(live(&world, 1), "Put 2 on 0, its content stays\nRemove 1\n", "beside");
    // The domain has opened 3 by the disk's link, which leads to 5 by now: QEMU must not write to it.
    let create = world.chain().create_live(4, &world.live()).expect("fine");
    world.run(&create);
    assert_eq!(
        live(&world, 3),
        "Have the domain pull what lies above 0 into its current file\nPut 4 on 0, its content stays\nRemove 3\n"
    );
    world.domain = None;
    world.boot();
    assert_eq!(
        live(&world, 0),
        "Put 1 on /ds/1/image, its content stays\nWrite 3 into 0.deleting\nHave the domain merge 3 into 0\n\
         Write 0 into 3.current\nRemove 3\nRemove 0.deleting\n"
    );
}

#[test]
fn a_merge_that_was_interrupted_is_refused_until_it_is_done_again() {
    let mut world = three();
    world.boot();
    let plan = world.chain().delete_live(1, &world.live()).expect("fine");
    world.apply(&plan.steps[0].step, usize::MAX);
    world.apply(&plan.steps[1].step, 2);
    let half = "Refused: Snapshot 1 was being deleted when that was interrupted, 1 no longer holds it: delete it again";
    world.domain = None;
    assert_eq!(says(world.chain().revert(1)), half);
    assert!(world.chain().source(Some(1)).is_err());
    assert!(world.chain().source(Some(2)).is_ok());
    assert_eq!(says(world.chain().delete(1)), "Put 2 on 0, its content stays\nRemove 1\nRemove 1.deleting\n");
}

#[test]
fn what_upstream_leaves_is_understood() {
    let mut world = three();
    // Its powered-off delete of 1: an absolute name in a layout of relative ones.
    let folder = world.names.folder();
    let set = |world: &mut World, file: &str, name: &str| {
        world.put(folder.join(file), overlay(name));
    };
    set(&mut world, "2", "/ds/0/7/disk.0.snap/0");
    world.items.remove(&folder.join("1"));
    assert_eq!(world.chain().findings().count(), 0);
    assert_eq!(world.chain().manner(), Manner::Relative);
    assert_eq!(says(world.chain().delete(2)), "Put 3 on 0, its content stays\nRemove 2\n");
    let plan = world.chain().delete(2).expect("fine");
    assert!(
        matches!(&plan.steps[0].step, Step::Rebase { onto: Some((name, _)), .. } if name.as_os_str() == "disk.0.snap/0")
    );
    // Its live delete of 0: 2 was merged into 0, under whichever root the path stands.
    world.items.insert(folder.join("2.current"), Item::Text("/other/0/7/disk.0.snap/0".into()));
    world.items.remove(&folder.join("2"));
    set(&mut world, "3", "disk.0.snap/0");
    let chain = world.chain();
    assert_eq!(chain.snapshots(), [2]);
    assert_eq!(chain.source(Some(2)).expect("there").path, PathBuf::from("/ds/0/7/disk.0.snap/0"));
    assert_eq!(says(chain.create(3)), "Make the empty layer 4 on 3\nPoint disk.0 to 4\n");
    assert_eq!(says(chain.delete(2)), "Put 3 on /ds/1/image, its content stays\nRemove 0\nRemove 2.current\n");
    assert_eq!(says(chain.delete(0)), "(Snapshot 0 is gone already)\n");
}

#[test]
fn a_relative_name_of_the_image_is_made_whole_where_it_is_handed_up() {
    let mut world = three();
    let folder = world.names.folder();
    world.put(folder.join("0"), overlay("../../../1/image"));
    assert_eq!(world.chain().findings().count(), 0);
    // The child may be the current file, which QEMU opens as `disk.0`, two folders higher.
    let plan = world.chain().delete(0).expect("fine");
    let image = PathBuf::from("/ds/1/image");
    assert!(matches!(&plan.steps[0].step, Step::Rebase { onto: Some((name, _)), copy: true, .. } if *name == image));
    world.run(&plan);
    assert_eq!(world.chain().findings().count(), 0);
}

#[test]
fn a_disk_that_was_moved_is_named_and_put_right() {
    let mut world = three();
    let folder = world.names.folder();
    world.put(folder.join("2"), overlay("/old/0/7/disk.0.snap/1"));
    let text = "2 has its backing file under another root, '/old/0/7/1', while 1 lies here: the disk was moved";
    for plan in [world.chain().create(3), world.chain().delete(2), world.chain().delete(1)] {
        // The child of 1 cannot be told from the name alone: deleting 1 would leave 2 without it.
        let said = says(plan);
        assert!(said.contains(text), "{said}");
    }
    assert_eq!(says(world.chain().repoint()), "Name 1 as the backing file of 2\n");
    let plan = world.chain().repoint().expect("fine");
    world.run(&plan);
    assert_eq!(world.chain().findings().count(), 0);
    // The other root is a link to this one: nothing is wrong.
    world.put(folder.join("2"), overlay("/old/0/7/disk.0.snap/1"));
    let mut facts = world.facts();
    let inode = facts.folder.as_ref().and_then(|folder| folder.get("1".as_ref() as &std::ffi::OsStr)?.inode);
    facts.outside = BTreeMap::from([(PathBuf::from("/old/0/7/disk.0.snap/1"), inode)]);
    assert_eq!(Chain::of(&facts).findings().count(), 0);
}

#[test]
fn names_hold_at_both_places_before_a_disk_moves() {
    let mut world = three();
    assert_eq!(says(Ok(world.chain().movable())), "");
    let folder = world.names.folder();
    // Upstream's powered-off delete, a name from before a move, and a disk that was linked by its whole path.
    world.put(folder.join("1"), overlay("/ds/0/7/disk.0.snap/0"));
    world.put(folder.join("2"), overlay("/old/0/7/disk.0.snap/1"));
    world.items.insert(world.names.disk.clone(), Item::Link(folder.join("3")));
    world.items.remove(&folder.join("disk.0.snap"));
    let plan = world.chain().movable();
    assert_eq!(
        says(Ok(plan.clone())),
        "Point disk.0.snap to .\nName 0 as the backing file of 1\nName 1 as the backing file of 2\nPoint disk.0 to 3\n"
    );
    world.run(&plan);
    assert_eq!((world.chain().findings().count(), says(Ok(world.chain().movable()))), (0, String::new()));
    // The layers of an image that is used in place stay where they are.
    assert_eq!(says(Ok(super::simulator::world(Start::Persistent).chain().movable())), "");
}

fn broken(change: impl Fn(&mut World, &std::path::Path)) -> (Vec<String>, World) {
    let mut world = three();
    let folder = world.names.folder();
    change(&mut world, &folder);
    let found =
        world.chain().findings().map(|f| f.to_string().replace("/ds/0/7/", "").replace("disk.0.snap/", "")).collect();
    (found, world)
}

#[test]
fn broken_chains_are_named_and_left_alone() {
    let (found, world) = broken(|world, folder| drop(world.items.remove(&folder.join("1"))));
    assert_eq!(found, ["2 needs its backing file '1', which is missing"]);
    assert_eq!(says(world.chain().create(3)), format!("Refused: {}", found[0]));
    assert_eq!(says(world.chain().revert(2)), format!("Refused: {}", found[0]));
    assert_eq!(says(world.chain().delete(1)), format!("Refused: {}", found[0]));
    assert_eq!(says(world.chain().revert(0)), "Make the empty layer 3 on 0\n", "does not touch it");

    let (found, world) = broken(|world, folder| {
        world.put(folder.join("0"), overlay("disk.0.snap/1"));
    });
    assert_eq!(found[0], "The layers back each other in a circle: 0, 1");
    assert!(says(world.chain().create(3)).starts_with("Refused: The layers back each other"));

    let (found, _) = broken(|world, folder| {
        world.put(folder.join("1"), overlay("json:{\"x\":1}"));
    });
    assert_eq!(found, ["1 has a backing file 'json:{\\\"x\\\":1}', which is no path"]);

    let (found, _) = broken(|world, folder| {
        let image = Image { backing: Some(("disk.0.snap/0".into(), "raw".into())), ..overlay("") };
        world.put(folder.join("1"), image);
    });
    assert_eq!(found, ["1 takes its backing file for raw, but it is qcow2"]);

    let (found, world) = broken(|world, folder| {
        world.items.insert(folder.join("1.current"), Item::Text("/x/9".into()));
        world.items.remove(&folder.join("1"));
        world.put(folder.join("2"), overlay("disk.0.snap/0"));
    });
    assert_eq!(found, ["1.current names 9, which is missing"]);
    assert_eq!(says(world.chain().delete(1)), "Remove 1.current\n(Snapshot 1 is gone already)\n");

    let (found, world) = broken(|world, _| world.link("/ds/0/7/disk.0", "disk.0.snap/9"));
    assert_eq!(found, ["disk.0 is a link to 9, which is missing"]);
    assert!(world.chain().create(3).is_err() && world.chain().source(None).is_err());

    let (found, _) = broken(|world, _| world.link("/ds/0/7/disk.0", "/etc/passwd"));
    assert_eq!(found, ["disk.0 is a link to /etc/passwd, which is none of its files"]);

    let (found, _) = broken(|world, _| {
        world.put("/ds/0/7/disk.0", full(1));
    });
    assert_eq!(found, ["disk.0 is a file that has nothing to do with the layer 0"]);

    let (found, _) = broken(|world, folder| {
        world.items.insert(folder.join("1.current"), Item::Text("/x/0".into()));
        world.items.insert(folder.join("2.current"), Item::Text("/x/0".into()));
    });
    assert_eq!(found, ["0 is said to hold the snapshots 1 and 2"]);
}

#[test]
fn faults_that_only_facts_tell() {
    let world = three();
    let mut facts = world.facts();
    facts.others = vec![("/ds/0/7/disk.1".into(), "disk.0.snap/1".into())];
    let chain = Chain::of(&facts);
    assert_eq!(says(chain.create(3)), "Refused: 1 is used by another disk too: disk.1");
    let mut facts = world.facts();
    facts.outside = BTreeMap::from([(PathBuf::from("/ds/1/image"), None)]);
    assert_eq!(says(Chain::of(&facts).create(3)), "Refused: 0 needs its backing file '/ds/1/image', which is missing");
    let mut facts = world.facts();
    let header =
        facts.folder.as_mut().and_then(|folder| folder.get_mut("2".as_ref() as &std::ffi::OsStr)?.header.as_mut());
    let header = header.expect("a layer");
    header.backing = header.backing.take().map(|backing| Backing { format: None, ..backing });
    assert_eq!(says(Chain::of(&facts).create(3)), "Refused: 2 does not say which format its backing file has");
    let cut = world_cut();
    assert_eq!(says(cut.chain().create(0)), "Refused: disk.0 is a file of its own and no longer the image /ds/1/abc");
}

/// Upstream's revert of a raw persistent disk.
fn world_cut() -> World {
    let mut cut = world(Start::RawPersistent);
    cut.put("/ds/0/7/disk.0", Image { qcow2: false, ..full(8) });
    cut
}

#[test]
fn a_domain_that_uses_other_files_is_left_alone() {
    let mut world = three();
    world.boot();
    let live = Live { chain: vec!["/ds/0/7/disk.0".into(), "/ds/0/7/disk.0.snap/0".into()] };
    let said = says(world.chain().delete_live(1, &live));
    assert!(
        said.starts_with("Refused: The running domain uses disk.0 on 0, but the files say 3 on 2 on 1 on 0"),
        "{said}"
    );
    let live = Live { chain: vec!["/elsewhere".into()] };
    assert!(world.chain().create_live(3, &live).is_err());
}

#[test]
fn copies_are_copied() {
    let mut raw = world(Start::Raw);
    assert_eq!(says(raw.chain().create(0)), "Make the folder of layers disk.0.snap\nCopy disk.0 to 0\n");
    let create = raw.chain().create(0).expect("fine");
    raw.run(&create);
    assert_eq!(says(raw.chain().create(0)), "Copy disk.0 to 0\n");
    assert_eq!(says(raw.chain().revert(0)), "Copy 0 to disk.0\n");
    assert_eq!(says(raw.chain().delete(0)), "Remove 0\n");
    let mut image = world(Start::RawPersistent);
    let create = image.chain().create(0).expect("fine");
    image.run(&create);
    assert_eq!(
        image.chain().revert(0).expect("fine").to_string(),
        "Copy /ds/1/abc.snap/0 to /ds/1/abc\n",
        "not the link"
    );
    assert_eq!(image.chain().source(None).expect("fine").path, PathBuf::from("/ds/1/abc"));
}
