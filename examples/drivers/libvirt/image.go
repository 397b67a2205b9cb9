package libvirt

import (
	"bytes"
	"context"
	"crypto/rand"
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

// baseDir is the cache of images in the driver's directory, as Nova's. It is no server's.
const baseDir = "_base"

// base returns the copy of an image in the driver's cache, on which disks rest. It is made once for
// each content, by conversion, of an image that was inspected: whatever is written in the image
// itself, or is done to its file later, is in no disk's chain.
func (o *options) base(ctx context.Context, ref string) (string, error) {
	source, format, err := o.image(ref)
	if err != nil {
		return "", err
	}
	f, err := os.Open(source)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fault.New(fault.Invalid, "image %s is not a regular file", source)
	}
	dir := filepath.Join(o.dir, baseDir)
	path := filepath.Join(dir, fmt.Sprintf("%s.%x.%x.qcow2", ref, info.Size(), info.ModTime().UnixNano()))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := inspect(f, format); err != nil {
		return "", fault.New(fault.CodeOf(err), "image %s: %w", source, err)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // QEMU's user has to pass
		return "", err
	}
	tmp := path + ".new-" + rand.Text()   // several may be made at once: the last one stays
	defer func() { _ = os.Remove(tmp) }() // if it could not be made
	// The very file that was inspected, which another one may have replaced by name.
	if _, err := qemuImgOn(ctx, f, "convert", "-q", "-f", format, "-O", "qcow2", inherited, tmp); err != nil {
		return "", fmt.Errorf("image %s: %w", source, err)
	}
	if err := os.Chmod(tmp, info.Mode().Perm()); err != nil {
		return "", err
	}
	return path, os.Rename(tmp, path)
}

// overlay makes a disk that begins as an image, at path, which appears when it is
// complete. It has gib GiB, or as much as the image if that is 0.
func (o *options) overlay(ctx context.Context, path, imageRef string, gib int) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	base, err := o.base(ctx, imageRef)
	if err != nil {
		return err
	}
	info, err := describe(ctx, base, "qcow2")
	if err != nil {
		return err
	}
	size := info.Size
	if want := int64(gib) << 30; gib > 0 {
		if want < size {
			return fault.New(fault.Invalid, "a disk of %d GiB is too small for image %s, which has %d bytes", gib, imageRef, size)
		}
		size = want
	}
	return restOn(ctx, path, base, "qcow2", size)
}

// restOn makes a disk of some bytes that begins as base, at path, in one step
// whatever is there.
func restOn(ctx context.Context, path, base, format string, size int64) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := qemuImg(ctx, "create", "-q", "-f", "qcow2", "-b", base, "-F", format, tmp, strconv.FormatInt(size, 10)); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// grow makes the disk of a server that is off larger, and returns the name of the
// file that keeps it as it was, on which it rests from now on. It may be killed, and
// called again, at any point: the server's disk is always whole.
func (o *options) grow(ctx context.Context, id string, gib int) (string, error) {
	path, want := o.file(id, diskFile), int64(gib)<<30
	now, err := describe(ctx, path, "qcow2")
	if err != nil {
		return "", err
	}
	if now.Size >= want { // a call that was killed has done it, or the image is as large
		if filepath.Dir(now.Backing) != filepath.Dir(path) {
			return "", nil
		}
		return filepath.Base(now.Backing), nil
	}
	for n := 1; ; n++ {
		name := fmt.Sprintf("disk.%d.qcow2", n)
		err := os.Link(path, o.file(id, name))
		if errors.Is(err, fs.ErrExist) {
			if same, err := sameFile(path, o.file(id, name)); err != nil || !same { // same: a call that was killed
				if err != nil {
					return "", err
				}
				continue
			}
		} else if err != nil {
			return "", err
		}
		return name, restOn(ctx, path, o.file(id, name), "qcow2", want)
	}
}

func sameFile(a, b string) (bool, error) {
	x, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y), err
}

type diskInfo struct {
	Size    int64  `json:"virtual-size"`
	Backing string `json:"backing-filename"`
}

func describe(ctx context.Context, path, format string) (info diskInfo, err error) {
	out, err := qemuImg(ctx, "info", "-U", "--output=json", "-f", format, path)
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return info, fmt.Errorf("qemu-img info %s: %w", path, err)
	}
	return info, nil
}

// inherited is the name of the file that qemuImgOn hands on.
const inherited = "/dev/fd/3"

func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	return qemuImgOn(ctx, nil, args...)
}

// qemuImgOn runs qemu-img, which finds a file that is open here as inherited.
func qemuImgOn(ctx context.Context, f *os.File, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	if f != nil {
		cmd.ExtraFiles = []*os.File{f}
	}
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
