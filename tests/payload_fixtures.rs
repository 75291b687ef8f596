//! Documents that a running oned sent, as typed values. One file per recorded call in `tests/payloads/<family>/`.

use std::error::Error;
use std::fs;
use std::path::Path;

use onestore::payload::{
    ActionData, DEFAULT_LIMIT, Datastore, DatastorePool, DatastoreType, Host, HostPool, Image, ImageType, Vm, parse,
    read,
};

type Outcome = Result<(), Box<dyn Error>>;

fn sent(name: &str) -> Result<String, Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/payloads").join(name);
    Ok(read(fs::File::open(path)?, DEFAULT_LIMIT)?)
}

fn action(name: &str) -> Result<ActionData, Box<dyn Error>> {
    Ok(parse(&sent(name)?)?)
}

#[test]
fn fs_cp() -> Outcome {
    let data = action("fs/cp.b64")?;
    let image = data.required_image()?;
    assert_eq!(image.id.required()?, 0);
    assert_eq!(image.image_type.required()?, ImageType::Os);
    assert_eq!(image.path.required()?, "/srv/www/base.raw");
    assert_eq!(image.source.get(), None);
    assert_eq!(image.target_snapshot.get()?, Some(-1));
    let ds = &data.datastore;
    assert_eq!(ds.id.required()?, 100);
    assert_eq!(ds.datastore_type.required()?, DatastoreType::Image);
    assert_eq!(ds.base_path.required()?, "/var/lib/one//datastores/100");
    assert_eq!((ds.ds_mad.get(), ds.tm_mad.get()), (Some("fs"), Some("ssh")));
    assert_eq!(ds.template.safe_dirs.words().collect::<Vec<_>>(), ["/var/tmp", "/srv/www"]);
    assert_eq!(ds.template.bridge_list.words().count(), 0);
    assert!(ds.images.ids.is_empty());
    Ok(())
}

#[test]
fn fs_clone() -> Outcome {
    let data = action("fs/clone.b64")?;
    let image = data.required_image()?;
    assert_eq!(image.name.required()?, "ssh_os_clone");
    assert!(image.path.required()?.starts_with("/var/lib/one//datastores/100/"));
    assert_eq!(data.datastore.images.numbers()?, [0, 1, 2, 3, 4, 19, 20, 21, 22, 27, 28, 37, 38]);
    assert_eq!(data.source_bridge_list.get(), None);
    Ok(())
}

#[test]
fn fs_stat() -> Outcome {
    let data = action("fs/stat.b64")?;
    let image = data.required_image()?;
    assert_eq!(image.path.required()?, "/srv/www/base.raw");
    assert_eq!(image.size.get()?, None);
    assert_eq!(image.id.get()?, None);
    Ok(())
}

#[test]
fn fs_export_is_sent_indented() -> Outcome {
    assert!(sent("fs/export.b64")?.contains("\n  <ID>"));
    let data = action("fs/export.b64")?;
    let image = data.required_image()?;
    assert_eq!((image.id.required()?, image.size.required()?), (5, 64));
    assert_eq!(image.fs.get(), None);
    assert_eq!(image.source.required()?, "/var/lib/one//datastores/102/15119014d62173cc6d4d95fe2d5ab10e");
    Ok(())
}

#[test]
fn fs_snap_revert() -> Outcome {
    let data = action("fs/snap_revert.b64")?;
    let image = data.required_image()?;
    let target = image.target_snapshot.required()?;
    assert!(target >= 0);
    assert!(image.snapshots.snapshots.iter().any(|s| s.id.get().ok().flatten().map(i64::from) == Some(target)));
    Ok(())
}

#[test]
fn monitoring_has_no_image() -> Outcome {
    let data = action("dummy/monitor.b64")?;
    assert_eq!(data.required_image().unwrap_err().to_string(), "IMAGE is missing or empty");
    assert_eq!(data.datastore.id.required()?, 106);
    assert_eq!(data.monitor_vm_disks.get()?, None);

    let data = action("qcow2/monitor.b64")?;
    assert_eq!(data.datastore.datastore_type.required()?, DatastoreType::System);
    assert_eq!(data.datastore_location.required()?, "/var/lib/one//datastores");
    assert_eq!(data.monitor_vm_disks.required()?, 1);
    assert!(data.datastore.template.shared.is_yes());
    Ok(())
}

#[test]
fn restic_backup_is_sent_plain() -> Outcome {
    let data = action("restic/backup.xml")?;
    let vm = data.required_vm()?;
    assert_eq!((vm.id.required()?, vm.lcm_state.required()?), (8, 69));
    assert_eq!(vm.template.disks.len(), 2);
    let disk = vm.disk(1).ok_or("disk 1")?;
    assert!(disk.persistent.is_yes() && disk.save.is_yes());
    assert_eq!((disk.clone.get(), disk.target.get(), disk.size.required()?), (Some("NO"), Some("vdb"), 32));
    let context = vm.template.context.as_ref().ok_or("context")?;
    assert_eq!(context.disk_id.required()?, 2);
    assert_eq!(context.other.get("HELLO"), Some("wor ld vb_q_restic"));
    assert_eq!(vm.last_history().ok_or("history")?.hostname.required()?, "host01");
    assert_eq!(vm.backups.config.last_increment_id.required()?, -1);
    assert_eq!(vm.template.tm_mad_system.get(), Some("qcow2"));
    assert!(vm.template.tpm.is_none());
    assert_eq!(data.datastore.template.restic_password.required()?.reveal(), "resticpw");
    assert!(!format!("{data:?}").contains("resticpw"));
    Ok(())
}

#[test]
fn restic_restore_and_flatten() -> Outcome {
    let data = action("restic/restore.b64")?;
    assert_eq!(data.destination_ds_id.required()?, 102);
    assert_eq!((data.template.name.get(), data.template.username.get()), (Some("rr"), Some("oneadmin")));
    assert_eq!(data.template.increment_id.get()?, None);
    assert_eq!(data.required_image()?.image_type.required()?, ImageType::Backup);
    assert_eq!(data.required_image()?.vms.numbers()?, [8]);

    let data = action("restic/increment_flatten.b64")?;
    assert_eq!(data.extra_data.keep_last.required()?, 2);
    let increments = &data.required_image()?.backup_increments.increments;
    assert_eq!(increments[0].parent_id.required()?, -1);
    assert_eq!(increments[0].increment_type.get(), Some("FULL"));
    assert!(increments.iter().all(|increment| increment.source.get().is_some_and(|source| source.len() == 8)));
    Ok(())
}

#[test]
fn a_vm_alone() -> Outcome {
    let vm: Vm = parse(&sent("restic/backup_cancel.xml")?)?;
    assert_eq!(vm.deploy_id.required()?, "16d41562-028f-498a-8dc5-07ac25d76bcf");
    let vm: Vm = parse(&sent("qcow2/prebackup_live.xml")?)?;
    assert_eq!((vm.id.required()?, vm.backups.config.mode.get()), (8, Some("INCREMENT")));
    let vm: Vm = parse(&sent("ssh/premigrate.b64")?)?;
    assert_eq!(vm.id.required()?, 1);
    assert_eq!(vm.disk(0).ok_or("disk 0")?.size.required()?, 96);
    assert_eq!(vm.disk(2).ok_or("disk 2")?.image_id.get()?, None);
    assert!(parse::<ActionData>(&sent("ssh/premigrate.b64")?).is_err());
    Ok(())
}

/// A whole collection of recordings, where there is one: `ONESTORE_RECORDINGS=DIR cargo test … -- --ignored`.
#[test]
#[ignore = "needs a directory of recordings in ONESTORE_RECORDINGS"]
fn every_recording_parses() -> Outcome {
    let root = std::env::var_os("ONESTORE_RECORDINGS").ok_or("ONESTORE_RECORDINGS is not set")?;
    let root = Path::new(&root);
    let (mut empty, mut actions, mut vms) = (0, 0, 0);
    for call in fs::read_dir(root.join("calls"))? {
        let call = call?.path();
        let name = call.display().to_string();
        let file = fs::File::open(call.join("stdin"));
        if !file.as_ref().is_ok_and(|file| file.metadata().is_ok_and(|about| about.len() > 0)) {
            empty += 1;
            continue;
        }
        let xml = read(file?, DEFAULT_LIMIT).map_err(|e| format!("{name}: {e}"))?;
        assert_eq!(xml, fs::read_to_string(call.join("stdin.xml"))?, "{name}");
        if xml.trim_start().starts_with("<VM>") {
            let vm: Vm = parse(&xml).map_err(|e| format!("{name}: {e}"))?;
            check_vm(&vm).map_err(|e| format!("{name}: {e}"))?;
            vms += 1;
        } else {
            let data: ActionData = parse(&xml).map_err(|e| format!("{name}: {e}"))?;
            data.datastore.datastore_type.required().map_err(|e| format!("{name}: {e}"))?;
            if let Some(vm) = &data.vm {
                check_vm(vm).map_err(|e| format!("{name}: {e}"))?;
            }
            actions += 1;
        }
    }
    for (kind, check) in [
        ("vm", (|xml| check_vm(&parse::<Vm>(xml)?)) as fn(&str) -> Outcome),
        ("image", |xml| Ok(parse::<Image>(xml)?.size.required().map(drop)?)),
        ("datastore", |xml| Ok(parse::<Datastore>(xml)?.datastore_type.required().map(drop)?)),
        ("host", |xml| Ok(parse::<Host>(xml)?.state.required().map(drop)?)),
    ] {
        for file in fs::read_dir(root.join("oned").join(kind))? {
            let path = file?.path();
            check(&fs::read_to_string(&path)?).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    assert_eq!(parse::<HostPool>(&fs::read_to_string(root.join("oned/hostpool.xml"))?)?.hosts.len(), 2);
    assert_eq!(parse::<DatastorePool>(&fs::read_to_string(root.join("oned/datastorepool.xml"))?)?.datastores.len(), 15);
    println!("{empty} calls without input, {actions} action documents, {vms} VMs");
    Ok(())
}

/// Every number that drivers rely on can be had.
fn check_vm(vm: &Vm) -> Outcome {
    vm.id.required()?;
    vm.lcm_state.required()?;
    for disk in &vm.template.disks {
        disk.disk_id.required()?;
        disk.size.required()?;
        disk.original_size.get()?;
        disk.image_id.get()?;
        disk.tm_mad.required()?;
    }
    for history in &vm.history_records.histories {
        history.hostname.required()?;
        history.ds_id.required()?;
        history.action.get()?;
    }
    for snapshots in &vm.snapshots {
        snapshots.disk_id.required()?;
        for snapshot in &snapshots.snapshots {
            snapshot.id.required()?;
            snapshot.parent.required()?;
        }
    }
    vm.backups.config.last_increment_id.get()?;
    Ok(())
}
