// Package image finds the images from which servers boot. A [Source] of images is OpenStack's image service ([Glance]), a directory of image files ([Directory]),
// or the one built-in image of the fake driver ([BuiltIn]). [Files] downloads images of the image service to a host, and uploads snapshots of servers.
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

// Image describes an image.
type Image struct {
	// ID is the reference by which drivers know the image.
	ID   string
	Name string
	// Size is the size of the file, in bytes.
	Size int64
	// MinRAMMiB and MinDiskGiB are the least memory and disk that a flavor must have for this image.
	MinRAMMiB, MinDiskGiB int
	Properties            map[string]string
	Created, Updated      time.Time
	// Status is the status in the image service. Servers boot only from an image that is [Active].
	Status string
	// Format is the format of the content, such as qcow2. It is empty if it is not known.
	Format string

	checksum, hashAlgo, hash string // hashes of the content; checksum is the MD5 sum, and the algorithm hashAlgo gives hash
	owner                    string // id of the project
}

// Active is the status of an image that has its content.
const Active = "active"

// Source finds images. It is safe for concurrent use. The parameter token is the token of the client. A directory shows all clients the same images.
type Source interface {
	// Get returns an image. Errors: NotFound, also if the client may not see the image; Denied; Unavailable if the images cannot be read.
	Get(ctx context.Context, token, id string) (*Image, error)
	// List returns the images that the client may see. Errors: Unavailable; Unauthenticated or Denied if the token is refused.
	List(ctx context.Context, token string) ([]Image, error)
}

// Keeper is a Source in which clients create, change and delete images. The errors are those of Source, and Conflict if the state of the image does not allow the change.
type Keeper interface {
	Source
	// Create makes an image without content in the client's project, and returns its id. The new image gets the Name, the Format, the least memory and disk, and
	// the Properties of the given Image. Errors: Invalid, Denied.
	Create(ctx context.Context, token string, is Image) (id string, err error)
	// Delete removes an image.
	Delete(ctx context.Context, token, id string) error
	// SetProperties changes the properties of an image, and returns the image. The function change gets a copy of the present properties, never from a cache, and returns the new
	// properties. SetProperties may call change several times. If change returns an error, SetProperties changes nothing and returns that error.
	SetProperties(ctx context.Context, token, id string, change func(map[string]string) (map[string]string, error)) (*Image, error)
}

// BuiltIn returns a source with one image, cirros. The image has no content, because the fake driver reads none.
func BuiltIn() Source {
	return fixed{{ID: "cirros", Name: "cirros", Created: time.Unix(0, 0), Updated: time.Unix(0, 0), Status: Active}}
}

type fixed []Image

func (f fixed) List(context.Context, string) ([]Image, error) { return f, nil }

func (f fixed) Get(_ context.Context, _, id string) (*Image, error) { return findImage(f, id) }

func findImage(list []Image, id string) (*Image, error) {
	i := slices.IndexFunc(list, func(is Image) bool { return is.ID == id })
	if i < 0 {
		return nil, fault.New(fault.NotFound, "Image %s could not be found.", id)
	}
	return &list[i], nil
}

// ListFile is the name of the file that describes the images of a directory, see [Directory].
const ListFile = "images.json"

// suffixes are the suffixes of the names of image files, in alphabetical order. If several files have the same ID, the one with the first suffix is the image.
var suffixes = []string{".img", ".qcow2", ".raw"}

// Directory returns the images of a directory: the files NAME.qcow2, NAME.img and NAME.raw, with NAME as the id. The file images.json may describe
// them: {"NAME": {"min_ram": MIB, "min_disk": GIB, "properties": {"KEY": "VALUE"}}}. Each call of the source reads this file. Errors: Invalid if
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

// more is the description of an image in the list file.
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

// listed returns the descriptions in the list file, by id.
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

// Get implements Source. It does not list the directory.
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

// maxName is the maximum length of an ID, in bytes. File systems allow 255 for the name with its suffix.
const maxName = 240

// read returns the image in a file, or nil if the file does not exist or is not a regular file.
func (d directory) read(id, file string, known map[string]more) (*Image, error) {
	info, err := os.Stat(filepath.Join(string(d), file)) // follows links
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
