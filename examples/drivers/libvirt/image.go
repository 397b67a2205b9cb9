package libvirt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/armature-go/armature/fault"
)

var imageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// image finds an image's file and its format, which its name says: what is in an
// image may have been written by a guest, and is not asked.
func (o *options) image(ref string) (path, format string, err error) {
	if !imageName.MatchString(ref) {
		return "", "", fault.New(fault.Invalid, "%q is not an image's name", ref)
	}
	for _, f := range [][2]string{{".qcow2", "qcow2"}, {".img", "raw"}, {".raw", "raw"}} {
		path := filepath.Join(o.images, ref+f[0])
		if _, err := os.Stat(path); err == nil {
			return path, f[1], nil
		}
	}
	return "", "", fault.New(fault.Precondition, "this host has no image %s: there is no %s.qcow2, .img or .raw", ref, filepath.Join(o.images, ref))
}

// overlay makes a disk that begins as an image, at path, which appears when it is
// complete. It has gib GiB, or as much as the image if that is 0.
func (o *options) overlay(ctx context.Context, path, imageRef string, gib int) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	base, format, err := o.image(imageRef)
	if err != nil {
		return err
	}
	size, err := virtualSize(ctx, base, format)
	if err != nil {
		return err
	}
	if want := int64(gib) << 30; gib > 0 {
		if want < size {
			return fault.New(fault.Invalid, "a disk of %d GiB is too small for image %s, which has %d bytes", gib, imageRef, size)
		}
		size = want
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := qemuImg(ctx, "create", "-q", "-f", "qcow2", "-b", base, "-F", format, tmp, strconv.FormatInt(size, 10)); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func virtualSize(ctx context.Context, path, format string) (int64, error) {
	out, err := qemuImg(ctx, "info", "-U", "--output=json", "-f", format, path)
	if err != nil {
		return 0, err
	}
	var info struct {
		Size    int64  `json:"virtual-size"`
		Backing string `json:"backing-filename"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return 0, fmt.Errorf("qemu-img info %s: %w", path, err)
	}
	if info.Backing != "" && filepath.Base(path) != diskFile {
		return 0, fault.New(fault.Invalid, "image %s rests on %s: an image has to be whole", path, info.Backing)
	}
	return info.Size, nil
}

func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	said := strings.TrimSpace(stderr.String())
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return nil, fault.New(fault.Precondition, "there is no qemu-img: install qemu-utils")
	case strings.Contains(said, "No space left"):
		return nil, fault.New(fault.Exhausted, "qemu-img %s: %s", args[0], said)
	}
	return nil, fmt.Errorf("qemu-img %s: %w: %s", args[0], err, said)
}
