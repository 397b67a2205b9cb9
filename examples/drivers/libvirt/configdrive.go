package libvirt

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
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
	Meta        map[string]string `json:"meta,omitempty"`
	PublicKeys  map[string]string `json:"public_keys,omitempty"`
	Keys        []guestKey        `json:"keys,omitempty"`
	AdminPass   string            `json:"admin_pass,omitempty"`
	RandomSeed  string            `json:"random_seed"`
	Devices     []string          `json:"devices"`
	Files       []guestFile       `json:"files,omitempty"`
}

// guestFile is a file for the guest, whose content is at a path of the drive below openstack.
type guestFile struct {
	Content string `json:"content_path"`
	Path    string `json:"path"`
}

type guestKey struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Data string `json:"data"`
}

// keyName is the name of the user's key for the guest.
const keyName = "default"

// guestFiles returns the files of the config drive of a server, by path below the directory openstack. Errors: Invalid, if the user data are not base64.
func guestFiles(s *compute.Spec) (map[string][]byte, error) {
	userData, err := decodeUserData(s)
	if err != nil {
		return nil, err
	}
	seed := make([]byte, 512)
	_, _ = rand.Read(seed) // does not fail
	meta := guestMetadata{
		UUID: s.ID, Name: s.Name, Hostname: s.Hostname, ProjectID: s.ProjectID, Meta: s.Metadata, AdminPass: s.AdminPass,
		RandomSeed: base64.StdEncoding.EncodeToString(seed), Devices: []string{},
	}
	if s.PublicKey != "" {
		kind := "ssh"
		if strings.HasPrefix(s.PublicKey, "-----BEGIN") {
			kind = "x509"
		}
		meta.PublicKeys, meta.Keys = map[string]string{keyName: s.PublicKey}, []guestKey{{keyName, kind, s.PublicKey}}
	}
	out := map[string][]byte{"latest/vendor_data.json": []byte("{}"), "latest/network_data.json": []byte(`{"links": [], "networks": [], "services": []}`)}
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
	out, err := base64.StdEncoding.DecodeString(s.UserData) // it ignores line breaks
	if err != nil {
		return nil, fault.New(fault.Invalid, "user data of server %s: %w", s.ID, err)
	}
	return out, nil
}

// writeConfigDrive writes the config drive of a server: an ISO 9660 image with the directory openstack/latest. The file appears when it is complete, and replaces one of an earlier
// call. Only the owner may read it, because it has the password of the guest's administrator; libvirt gives it to QEMU's user.
func writeConfigDrive(path string, s *compute.Spec) (err error) {
	files, err := guestFiles(s)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	dir := tmp + ".d" // a killed call may have left it
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
		return fmt.Errorf("write the config drive of server %s: %w", s.ID, err)
	}
	return os.Rename(tmp, path)
}

// writeISO writes the content of a directory as an ISO 9660 image. The names of files are those of Rock Ridge, because ISO 9660 alone has none in lower-case letters.
func writeISO(path, dir string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fs, err := iso9660.Create(file.New(f, false), 0, 0, 0, dir)
	if err != nil {
		return err
	}
	label := fmt.Sprintf("%-32s", configLabel) // the standard pads with spaces
	if err := fs.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: label}); err != nil {
		return err
	}
	return f.Sync()
}
