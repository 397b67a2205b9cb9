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

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

var imageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// findImage returns an image's file and its format. The format follows from the file's name. It is not guessed from the
// content, because a guest may have written the content.
func (o *options) findImage(ref string) (path, format string, err error) {
	if filepath.IsAbs(ref) {
		return findFile(ref)
	}
	if o.images == "" {
		return "", "", fault.New(fault.Precondition, "this host has no image %s: the option images_path is not set", ref)
	}
	if !imageName.MatchString(ref) {
		return "", "", fault.New(fault.Invalid, "%q is not an image's name", ref)
	}
	for _, suffix := range []string{".qcow2", ".img", ".raw"} {
		path := filepath.Join(o.images, ref+suffix)
		_, err := os.Stat(path)
		if err == nil {
			return path, imageSuffixes[suffix], nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", "", fmt.Errorf("image %s: %w", ref, err)
		}
	}
	return "", "", fault.New(fault.Precondition, "this host has no image %s: none of %s.qcow2, .img and .raw exists", ref, filepath.Join(o.images, ref))
}

// imageSuffixes maps the suffixes of the names of image files to their formats.
var imageSuffixes = map[string]string{".qcow2": "qcow2", ".img": "raw", ".raw": "raw"}

// findFile returns the path of an image file, and the format of the image.
func findFile(path string) (string, string, error) {
	format := imageSuffixes[filepath.Ext(path)]
	if format == "" || !imageName.MatchString(filepath.Base(path)) {
		return "", "", fault.New(fault.Invalid, "%q is not an image: the name does not end in .qcow2, .img or .raw", path)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "", "", fault.New(fault.Precondition, "this host has no image %s", path)
	} else if err != nil {
		return "", "", err
	}
	return path, format, nil
}

// snapshotFile returns the path of the file for a snapshot. The parameter ref is the snapshot's name, or this path.
func (o *options) snapshotFile(ref string) (string, error) {
	switch {
	case filepath.IsAbs(ref) && filepath.Ext(ref) == ".qcow2" && imageName.MatchString(filepath.Base(ref)):
		return ref, nil
	case o.images == "" || !imageName.MatchString(ref):
		return "", fault.New(fault.Invalid, "%q is not an image's name, nor the absolute path of a file NAME.qcow2", ref)
	}
	return filepath.Join(o.images, ref+".qcow2"), nil
}

// baseDir is the cache of images in the driver's directory, as in Nova. It belongs to no server.
const baseDir = "_base"

// cachedImage returns the copy of an image in the driver's cache. The copy is the backing file of disks. An image is inspected and
// then converted once for each version of its file (size and time of the last change). So neither references in the image nor later
// changes of its file affect a disk.
//
// If the disk of the image is larger than gib GiB, cachedImage returns Invalid and does not convert the image, because a small file may claim a disk
// that would fill the host. If gib is 0, there is no limit.
func (o *options) cachedImage(ctx context.Context, ref string, gib int) (string, error) {
	source, format, err := o.findImage(ref)
	if err != nil {
		return "", err
	}
	f, err := os.Open(source)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // opened only to read
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fault.New(fault.Invalid, "image %s is not a regular file", source)
	}
	dir := filepath.Join(o.dir, baseDir)
	path := filepath.Join(dir, fmt.Sprintf("%s.%x.%x.qcow2", strings.TrimSuffix(filepath.Base(source), filepath.Ext(source)), info.Size(), info.ModTime().UnixNano()))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := checkImage(f, format); err != nil {
		return "", fault.New(fault.CodeOf(err), "image %s: %w", source, err)
	}
	size := info.Size()
	if format == "qcow2" {
		if size, err = virtualSize(f); err != nil {
			return "", fmt.Errorf("image %s: %w", source, err)
		}
	}
	if gib > 0 && size > int64(gib)<<30 {
		return "", tooSmall(ref, gib, size)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // QEMU's user needs the x bit
		return "", err
	}
	tmp := path + ".new-" + rand.Text()   // concurrent calls may each make a copy: the last copy stays
	defer func() { _ = os.Remove(tmp) }() // an incomplete copy
	// qemu-img gets the open file, and not the name: by now the name may be that of another file, which was not inspected.
	if _, err := qemuImgOn(ctx, f, "convert", "-q", "-f", format, "-O", "qcow2", inherited, tmp); err != nil {
		return "", fmt.Errorf("image %s: %w", source, err)
	}
	if err := os.Chmod(tmp, info.Mode().Perm()); err != nil {
		return "", err
	}
	return path, os.Rename(tmp, path)
}

// overlay creates a disk at path with the content of an image, unless the file exists. The file appears when it is complete. The disk has
// gib GiB, or, if gib is 0, the size of the image. Errors: Invalid if the disk would be smaller than the image.
func (o *options) overlay(ctx context.Context, path, imageRef string, gib int) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	base, err := o.cachedImage(ctx, imageRef, gib)
	if err != nil {
		return err
	}
	info, err := readDiskInfo(ctx, base, "qcow2")
	if err != nil {
		return err
	}
	size := info.Size
	if want := int64(gib) << 30; gib > 0 {
		if want < size {
			return tooSmall(imageRef, gib, size)
		}
		size = want
	}
	return createOnBase(ctx, path, base, "qcow2", size)
}

// createExtraDisks creates the ephemeral and the swap disk of a server: sparse files, with a file system and a swap area.
func (o *options) createExtraDisks(ctx context.Context, s *compute.Spec) error {
	if s.EphemeralGiB > 0 {
		if err := createFormatted(ctx, o.file(s.ID, ephemeralFile), int64(s.EphemeralGiB)<<30, "mkfs.ext4", "-q", "-F", "-L", "ephemeral0"); err != nil {
			return err
		}
	}
	if s.SwapMiB > 0 {
		return createFormatted(ctx, o.file(s.ID, swapFile), int64(s.SwapMiB)<<20, "mkswap", "-L", "swap0")
	}
	return nil
}

// createFormatted creates a file of a size, and formats it with a program, which gets the arguments and the path of the file. The file appears when it is complete. If it exists, nothing is done.
func createFormatted(ctx context.Context, path string, size int64, program string, args ...string) error {
	if fileExists(path) {
		return nil
	}
	tmp := path + ".new" // a killed call may have left this file
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, findProgram(program), append(args, tmp)...).CombinedOutput()
	switch {
	case err == nil:
		return os.Rename(tmp, path)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return fault.New(fault.Precondition, "%s does not exist: install e2fsprogs and util-linux", program)
	}
	return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
}

// findProgram returns the path of a program for administrators, which may be in a directory that PATH does not name.
func findProgram(name string) string {
	if _, err := exec.LookPath(name); err == nil {
		return name
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); fileExists(path) {
			return path
		}
	}
	return name
}

func tooSmall(ref string, gib int, size int64) error {
	return fault.New(fault.Invalid, "a disk of %d GiB is too small for image %s, which has %d bytes", gib, ref, size)
}

// createOnBase creates a disk of size bytes at path with the backing file base. It replaces an existing file in one step.
func createOnBase(ctx context.Context, path, base, format string, size int64) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := qemuImg(ctx, "create", "-q", "-f", "qcow2", "-b", base, "-F", format, tmp, strconv.FormatInt(size, 10)); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// growDisk enlarges the disk of a server that is shut down. It returns the name of the file with the old disk, which is the
// backing file of the new disk. It may be killed at any point and called again: the server's disk is always complete.
func (o *options) growDisk(ctx context.Context, id string, gib int) (string, error) {
	path, want := o.file(id, diskFile), int64(gib)<<30
	now, err := readDiskInfo(ctx, path, "qcow2")
	if err != nil {
		return "", err
	}
	if now.Size >= want { // an interrupted call has enlarged the disk, or the image is large enough
		if filepath.Dir(now.Backing) != filepath.Dir(path) {
			return "", nil
		}
		return filepath.Base(now.Backing), nil
	}
	name, err := o.linkOld(id)
	if err != nil {
		return "", err
	}
	return name, createOnBase(ctx, path, o.file(id, name), "qcow2", want)
}

// linkOld gives the disk of a server a second name, and returns this name. The disk keeps the second name when it becomes the backing file
// of a new disk. If an interrupted call has already given the disk a second name, linkOld returns that name; otherwise the first free name.
func (o *options) linkOld(id string) (string, error) {
	path := o.file(id, diskFile)
	for n := 1; ; n++ {
		name := fmt.Sprintf("disk.%d.qcow2", n)
		err := os.Link(path, o.file(id, name))
		if !errors.Is(err, fs.ErrExist) {
			return name, err
		}
		if same, err := sameFile(path, o.file(id, name)); err != nil || same {
			return name, err
		}
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

func readDiskInfo(ctx context.Context, path, format string) (info diskInfo, err error) {
	out, err := qemuImg(ctx, "info", "-U", "--output=json", "-f", format, path)
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return info, fmt.Errorf("qemu-img info %s: %w", path, err)
	}
	return info, nil
}

// inherited is the path by which qemu-img opens the file that qemuImgOn passes to it.
const inherited = "/dev/fd/3"

func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	return qemuImgOn(ctx, nil, args...)
}

// qemuImgOn runs qemu-img. If f is not nil, qemu-img finds this open file at the path inherited.
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
		return nil, fault.New(fault.Precondition, "qemu-img does not exist: install qemu-utils")
	case strings.Contains(said, "No space left"):
		return nil, fault.New(fault.Exhausted, "qemu-img %s: %s", args[0], said)
	}
	return nil, fmt.Errorf("qemu-img %s: %w: %s", args[0], err, said)
}
