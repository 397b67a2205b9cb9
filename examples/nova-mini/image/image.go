// Package image finds the images from which servers boot: in OpenStack's image service, in a directory of image files, or the one image that is built in
// for the fake driver. [Files] brings images of the image service to a host, and snapshots of servers to the image service.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
)

// Image is what is known of an image.
type Image struct {
	// ID is the reference that drivers understand.
	ID   string
	Name string
	// Size is the size of the file, in bytes.
	Size int64
	// MinRAMMiB and MinDiskGiB are what a flavor must have at least.
	MinRAMMiB, MinDiskGiB int
	Properties            map[string]string
	Created, Updated      time.Time
	// Status is the status in the image service. Only from an image that is [Active] a server boots.
	Status string
	// Format is the format of the content, such as qcow2. It is empty if it is not known.
	Format string

	checksum, hashAlgo, hash string // of the content; checksum is MD5
	owner                    string // the project
}

// Active is the status of an image with content.
const Active = "active"

// Source finds images. It is safe for concurrent use. The token is that of the client; a directory shows all clients the same images.
type Source interface {
	// Get returns an image. Errors: NotFound, also if the client must not see the image; Denied; Unavailable, if the images cannot be read.
	Get(ctx context.Context, token, id string) (*Image, error)
	// List returns the images that the client may see. Errors: Unavailable; Unauthenticated or Denied, if the token is refused.
	List(ctx context.Context, token string) ([]Image, error)
}

// Keeper is a source in which clients make images. The errors are those of Source, and Conflict, if the state of the image does not allow the change.
type Keeper interface {
	Source
	// Create makes an image of the client's project without content, with the name, the format, the minimal amounts and the properties of is. It returns the id.
	// Errors: Invalid, Denied.
	Create(ctx context.Context, token string, is Image) (id string, err error)
	// Delete removes an image.
	Delete(ctx context.Context, token, id string) error
	// SetProperties changes the properties of an image, and returns the image. change gets a copy of the present properties, not those of a cache, and returns the new ones. It
	// may be called several times. Its error is returned, and nothing is changed.
	SetProperties(ctx context.Context, token, id string, change func(map[string]string) (map[string]string, error)) (*Image, error)
}

// BuiltIn has the image cirros, which the fake driver does not read.
func BuiltIn() Source {
	return fixed{{ID: "cirros", Name: "cirros", Created: time.Unix(0, 0), Updated: time.Unix(0, 0), Status: Active}}
}

type fixed []Image

func (f fixed) List(context.Context, string) ([]Image, error) { return f, nil }

func (f fixed) Get(_ context.Context, _, id string) (*Image, error) { return find(f, id) }

func find(list []Image, id string) (*Image, error) {
	i := slices.IndexFunc(list, func(is Image) bool { return is.ID == id })
	if i < 0 {
		return nil, fault.New(fault.NotFound, "Image %s could not be found.", id)
	}
	return &list[i], nil
}

// ListFile is the name of the file of a directory that says more of its images, see [Directory].
const ListFile = "images.json"

// suffixes are the ends of the names of image files, sorted as the names are. The first of several files with the same ID counts.
var suffixes = []string{".img", ".qcow2", ".raw"}

// Directory has the images of a directory: the files NAME.qcow2, NAME.img and NAME.raw, with NAME as the id. The file images.json may say more
// of them: {"NAME": {"min_ram": MIB, "min_disk": GIB, "properties": {"KEY": "VALUE"}}}. It is read for each call. Errors: Invalid, if
// path is not absolute or cannot be read.
func Directory(ctx context.Context, path string) (Source, error) {
	if !filepath.IsAbs(path) {
		return nil, fault.New(fault.Invalid, "the directory of images %s is not an absolute path", path)
	}
	d := directory(path)
	if _, err := d.List(ctx, ""); err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	return d, nil
}

type directory string

// more is what the list file says of an image.
type more struct {
	MinRAM     int               `json:"min_ram"`
	MinDisk    int               `json:"min_disk"`
	Properties map[string]string `json:"properties"`
}

// List implements Source.
func (d directory) List(context.Context, string) ([]Image, error) {
	files, err := os.ReadDir(string(d))
	if err != nil {
		return nil, fault.New(fault.Unavailable, "read the images: %w", err)
	}
	known, err := d.listed()
	if err != nil {
		return nil, err
	}
	out := []Image{}
	for _, f := range files {
		suffix := filepath.Ext(f.Name())
		id := strings.TrimSuffix(f.Name(), suffix)
		if !slices.Contains(suffixes, suffix) || id == "" || slices.ContainsFunc(out, func(is Image) bool { return is.ID == id }) {
			continue
		}
		is, err := d.read(id, f.Name(), known)
		if err != nil {
			return nil, err
		}
		if is != nil {
			out = append(out, *is)
		}
	}
	return out, nil
}

// listed returns what the list file says.
func (d directory) listed() (out map[string]more, err error) {
	path := filepath.Join(string(d), ListFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		dec := json.NewDecoder(strings.NewReader(string(raw)))
		dec.DisallowUnknownFields()
		err = dec.Decode(&out)
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "read %s: %w", path, err)
	}
	for name, is := range out {
		if is.MinRAM < 0 || is.MinDisk < 0 {
			return nil, fault.New(fault.Unavailable, "read %s: the image %s has a negative min_ram or min_disk", path, name)
		}
	}
	return out, nil
}

// Get implements Source. It reads no other image.
func (d directory) Get(_ context.Context, _, id string) (*Image, error) {
	missing := fault.New(fault.NotFound, "Image %s could not be found.", id)
	if id == "" || len(id) > maxName || strings.ContainsAny(id, "/\\\x00") {
		return nil, missing
	}
	known, err := d.listed()
	if err != nil {
		return nil, err
	}
	for _, suffix := range suffixes {
		if is, err := d.read(id, id+suffix, known); is != nil || err != nil {
			return is, err
		}
	}
	if _, err := os.Stat(string(d)); err != nil {
		return nil, fault.New(fault.Unavailable, "read the images: %w", err)
	}
	return nil, missing
}

// maxName is the highest number of bytes of an ID. File systems have 255 for the name with its suffix.
const maxName = 240

// read returns the image of a file, or nil if the file is not an image file.
func (d directory) read(id, file string, known map[string]more) (*Image, error) {
	info, err := os.Stat(filepath.Join(string(d), file)) // of the file to which a link points
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && !info.Mode().IsRegular():
		return nil, nil //nolint:nilnil // see the doc
	case err != nil:
		return nil, fault.New(fault.Unavailable, "read the image %s: %w", file, err)
	}
	is := known[id]
	return &Image{
		ID: id, Name: id, Size: info.Size(), MinRAMMiB: is.MinRAM, MinDiskGiB: is.MinDisk, Properties: is.Properties,
		Created: info.ModTime(), Updated: info.ModTime(), Status: Active,
	}, nil
}
