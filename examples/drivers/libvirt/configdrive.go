package libvirt

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// configLabel is the label of a config drive, by which a guest finds it.
const configLabel = "config-2"

// guestMetadata is the file meta_data.json of OpenStack's config drive.
type guestMetadata struct {
	UUID        string            `json:"uuid"`
	Name        string            `json:"name"`
	Hostname    string            `json:"hostname"`
	ProjectID   string            `json:"project_id"`
	LaunchIndex int               `json:"launch_index"`
	Zone        string            `json:"availability_zone,omitempty"`
	Meta        map[string]string `json:"meta,omitempty"`
	PublicKeys  map[string]string `json:"public_keys,omitempty"`
	Keys        []guestKey        `json:"keys,omitempty"`
	AdminPass   string            `json:"admin_pass,omitempty"`
	RandomSeed  string            `json:"random_seed"`
	Devices     []guestDevice     `json:"devices"`
	Files       []guestFile       `json:"files,omitempty"`
}

// guestFile is a file for the guest. Content is the path of its content on the drive, below the directory openstack, and Path its path in the guest.
type guestFile struct {
	Content string `json:"content_path"`
	Path    string `json:"path"`
}

// guestDevice is a device that the user has given a name. The driver attaches the device later, so that its place on the bus is not known.
type guestDevice struct {
	Type    string   `json:"type"`
	Bus     string   `json:"bus"`
	Address string   `json:"address"`
	MAC     string   `json:"mac"`
	Tags    []string `json:"tags"`
}

// taggedDevices returns the network interfaces of a server that have a name.
func taggedDevices(list []compute.Interface) []guestDevice {
	out := []guestDevice{}
	for _, i := range list {
		if i.Tag != "" {
			out = append(out, guestDevice{"nic", "none", "none", i.MAC, []string{i.Tag}})
		}
	}
	return out
}

type guestKey struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Data string `json:"data"`
}

// defaultKeyName is the name that the guest gets for the user's key if the key's own name is not known.
const defaultKeyName = "default"

// guestFiles returns the files of a server's config drive, by their paths below the directory openstack. Errors: Invalid if the user data are not base64, or an address of an interface is
// not valid.
func guestFiles(s *compute.Spec) (map[string][]byte, error) {
	userData, err := decodeUserData(s)
	if err != nil {
		return nil, err
	}
	seed := make([]byte, 512)
	_, _ = rand.Read(seed) // does not fail
	meta := guestMetadata{
		UUID: s.ID, Name: s.Name, Hostname: s.Hostname, ProjectID: s.ProjectID, Meta: s.Metadata, AdminPass: s.AdminPass,
		RandomSeed: base64.StdEncoding.EncodeToString(seed), Devices: taggedDevices(s.Interfaces), LaunchIndex: s.LaunchIndex, Zone: s.Zone,
	}
	if s.PublicKey != "" {
		kind := "ssh"
		if strings.HasPrefix(s.PublicKey, "-----BEGIN") {
			kind = "x509"
		}
		name := cmp.Or(s.KeyName, defaultKeyName)
		meta.PublicKeys, meta.Keys = map[string]string{name: s.PublicKey}, []guestKey{{name, kind, s.PublicKey}}
	}
	out := map[string][]byte{"latest/vendor_data.json": []byte("{}")}
	networks, err := networkDataOf(s.Interfaces)
	if err != nil {
		return nil, err
	}
	if networks != nil {
		if out["latest/network_data.json"], err = json.Marshal(networks); err != nil {
			return nil, err
		}
	}
	for i, f := range s.Files {
		at := fmt.Sprintf("content/%04d", i)
		meta.Files, out[at] = append(meta.Files, guestFile{"/" + at, f.Path}), f.Content
	}
	if out["latest/meta_data.json"], err = json.Marshal(meta); err != nil {
		return nil, err
	}
	if len(userData) > 0 {
		out["latest/user_data"] = userData
	}
	return out, nil
}

// decodeUserData returns the user data of a server. Errors: Invalid.
func decodeUserData(s *compute.Spec) ([]byte, error) {
	out, err := base64.StdEncoding.DecodeString(s.UserData) // ignores line breaks
	if err != nil {
		return nil, fault.New(fault.Invalid, "user data of server %s: %w", s.ID, err)
	}
	return out, nil
}

// writeConfigDrive writes the config drive of a server: an ISO 9660 image with the directory openstack/latest. The file appears when it is complete, and replaces a file of an earlier
// call. Only the owner may read the file, because it has the password of the guest's administrator; libvirt changes the owner to QEMU's user.
func writeConfigDrive(path string, s *compute.Spec) error {
	files, err := guestFiles(s)
	if err == nil {
		err = writeDrive(path, files)
	}
	if err != nil {
		return fmt.Errorf("write the config drive of server %s: %w", s.ID, err)
	}
	return nil
}

// setRescuePassword makes the config drive for the rescue of a server. A server without a config drive, and a rescue without a password, need none.
func (o *options) setRescuePassword(m *metadata, password string) error {
	if !m.ConfigDrive {
		return nil
	}
	if err := writeRescueConfig(o.file(m.ID, rescueConfigFile), o.file(m.ID, configFile), password); err != nil {
		return fmt.Errorf("write the config drive for the rescue of server %s: %w", m.ID, err)
	}
	return nil
}

// writeRescueConfig writes a copy of a config drive that has another password. If the password is empty, it removes an earlier copy.
func writeRescueConfig(path, config, password string) error {
	if password == "" {
		return removeFile(path)
	}
	files, err := readDrive(config)
	if err != nil {
		return err
	}
	const name = "latest/meta_data.json"
	meta := map[string]json.RawMessage{} // keeps the fields of a later release
	if err := json.Unmarshal(files[name], &meta); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if meta["admin_pass"], err = json.Marshal(password); err != nil {
		return err
	}
	if files[name], err = json.Marshal(meta); err != nil {
		return err
	}
	return writeDrive(path, files)
}

// removeFile removes a file. It is not an error if the file does not exist.
func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// readDrive returns the files of a config drive, by their paths below the directory openstack.
func readDrive(path string) (map[string][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened only to read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	drive, err := iso9660.Read(file.New(f, true), info.Size(), 0, 0)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	dirs, err := drive.ReadDir("openstack")
	for i := 0; i < len(dirs) && err == nil; i++ {
		err = readDriveDir(drive, dirs[i].Name(), out)
	}
	return out, err
}

// readDriveDir adds the files of a directory below the directory openstack to files.
func readDriveDir(drive *iso9660.FileSystem, dir string, files map[string][]byte) error {
	list, err := drive.ReadDir("openstack/" + dir)
	for i := 0; i < len(list) && err == nil; i++ {
		name := dir + "/" + list[i].Name()
		files[name], err = drive.ReadFile("openstack/" + name)
	}
	return err
}

// writeDrive writes a config drive with files, which are named by their paths below the directory openstack.
func writeDrive(path string, files map[string][]byte) (err error) {
	tmp := path + ".new"
	dir := tmp + ".d" // a killed call may have left this directory
	if err := errors.Join(os.RemoveAll(tmp), os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, content := range files {
		to := filepath.Join(dir, "openstack", filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, content, 0o600)); err != nil {
			return err
		}
	}
	if err := writeISO(tmp, dir); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// writeISO writes the content of a directory as an ISO 9660 image. It uses the file names of Rock Ridge, because ISO 9660 alone has no lower-case letters.
func writeISO(path, dir string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	drive, err := iso9660.Create(file.New(f, false), 0, 0, 0, dir)
	if err != nil {
		return err
	}
	label := fmt.Sprintf("%-32s", configLabel) // the standard pads with spaces
	if err := drive.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: label}); err != nil {
		return err
	}
	return f.Sync()
}
