package image

import (
	"context"
	"crypto/md5"  //nolint:gosec // the only checksum of some images in Glance
	"crypto/sha1" //nolint:gosec // an image may have a checksum with this algorithm
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/keylock"
)

// Files keeps images of the image service as files on a host, for the driver of the host. Only one process may use Dir. Files is safe for concurrent use.
type Files struct {
	Glance *Glance
	// Dir is the directory of the files. It is created when it is needed. A complete file has the name ID.FORMAT. An operator may remove files
	// while no server is being built.
	Dir string

	locks keylock.Locks // the key is the id of an image
}

// hashes are the algorithms of checksums.
var hashes = map[string]func() hash.Hash{"md5": md5.New, "sha1": sha1.New, "sha224": sha256.New224, "sha256": sha256.New, "sha384": sha512.New384, "sha512": sha512.New}

// newHash returns a hash for the content of an image, and the checksum that the content must have. Errors: Precondition if the image service has no checksum, or
// only one with an unknown algorithm.
func (i *Image) newHash() (hash.Hash, string, error) {
	if h := hashes[i.hashAlgo]; h != nil && i.hash != "" {
		return h(), i.hash, nil
	}
	if i.checksum != "" {
		return md5.New(), i.checksum, nil //nolint:gosec // the image has no better checksum
	}
	return nil, "", fault.New(fault.Precondition, "image %s cannot be verified: the image service has no checksum of it, or only one with the unknown algorithm %q", i.ID, i.hashAlgo)
}

// formats are the formats of images from which servers boot.
var formats = map[string]bool{"qcow2": true, "raw": true}

// Fetch returns the path of the file of an image. If the host does not have the image, Fetch downloads it first, and verifies the content with the checksum of the
// image service. Until then the file has another name. Calls for the same image wait for one download. Errors: NotFound; Precondition if the image is not active or
// has no checksum; Invalid if the format is neither qcow2 nor raw, or if the content has another checksum; Unavailable.
func (f *Files) Fetch(ctx context.Context, id string) (string, error) {
	is, err := f.Glance.get(ctx, "", id)
	switch {
	case err != nil:
		return "", err
	case is.Status != Active:
		return "", fault.New(fault.Precondition, "Image %s is not active.", id)
	case !formats[is.Format]:
		return "", fault.New(fault.Invalid, "image %s has the format %q: servers boot from qcow2 and raw", id, is.Format)
	}
	if err := f.locks.Lock(ctx, id); err != nil {
		return "", fmt.Errorf("wait for the download of image %s: %w", id, err)
	}
	defer f.locks.Unlock(id)
	path := filepath.Join(f.Dir, id+"."+is.Format)
	if info, err := os.Stat(path); err == nil && info.Size() == is.Size {
		return path, nil
	}
	if err := os.MkdirAll(f.Dir, 0o711); err != nil { //nolint:gosec // the users of QEMU and of driver programs need the x bit
		return "", fmt.Errorf("download image %s: %w", id, err)
	}
	if err := f.download(ctx, is, path); err != nil {
		return "", fmt.Errorf("download image %s: %w", id, err)
	}
	return path, nil
}

// download writes the content of an image into a file. The file gets its name only when the content is complete and verified.
func (f *Files) download(ctx context.Context, is *Image, path string) (err error) {
	sum, want, err := is.newHash()
	if err != nil {
		return err
	}
	reply, err := f.Glance.transfer(ctx, http.MethodGet, is.ID, nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer reply.Body.Close()                                                 //nolint:errcheck // the body is only read
	tmp := path + ".part"                                                    // the file of an interrupted download is overwritten
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // the directory is closed; drivers give copies the mode of the file
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
	}()
	n, err := io.Copy(io.MultiWriter(file, sum), io.LimitReader(reply.Body, is.Size+1))
	if err == nil {
		err = file.Sync()
	}
	closed := file.Close()
	switch {
	case err != nil && ctx.Err() == nil && !isDiskError(err):
		return fault.New(fault.Unavailable, "after %d of %d bytes: %w", n, is.Size, err)
	case err != nil || closed != nil:
		return errors.Join(err, closed)
	case n != is.Size || !equalHash(sum.Sum(nil), want):
		return fault.New(fault.Invalid, "the content does not have the checksum of the image service: %d of %d bytes, %x, want %s", n, is.Size, sum.Sum(nil), want)
	}
	if err := os.Chtimes(tmp, time.Time{}, is.Created); err != nil { // drivers recognize an image by size and time, so each download has the same time
		return err
	}
	return os.Rename(tmp, path)
}

// Clean removes the incomplete files of a killed process: downloads (NAME.part), and snapshots, which drivers write as .new-NAME or NAME.new until they are complete. Call Clean
// before the other methods, and before the driver is used. A directory that does not exist is not an error.
func (f *Files) Clean() error {
	list, err := os.ReadDir(f.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, file := range list {
		if name := file.Name(); strings.HasPrefix(name, ".new-") || strings.HasSuffix(name, ".new") || strings.HasSuffix(name, ".part") {
			err = errors.Join(err, os.Remove(filepath.Join(f.Dir, name)))
		}
	}
	return err
}

// isDiskError reports whether a file of this host has caused an error.
func isDiskError(err error) bool {
	_, ok := errors.AsType[*fs.PathError](err)
	return ok
}

// Put uploads the content of an image that has none yet. It calls the function write, which writes the content in the format qcow2 into a new file. Put does not call write if an earlier call
// of Put for the image has written the file. It is not an error if the image has this content already. After an error the file stays: the caller must repeat the call, or call [Files.Drop]. The image stays, too: the caller
// removes it. Errors: NotFound; Conflict if the image does not accept content; Invalid if the image service has other content than the file; Unavailable.
func (f *Files) Put(ctx context.Context, id string, write func(path string) error) error {
	if err := f.locks.Lock(ctx, id); err != nil {
		return fmt.Errorf("wait for other work on image %s: %w", id, err)
	}
	defer f.locks.Unlock(id)
	if err := f.put(ctx, id, write); err != nil {
		return fmt.Errorf("upload image %s: %w", id, err)
	}
	return f.Drop(id)
}

// snapshot returns the path of the file of an image that is made on this host.
func (f *Files) snapshot(id string) string { return filepath.Join(f.Dir, "snapshot-"+id+".qcow2") }

// Drop removes the file of a snapshot that will not be uploaded. It is not an error if the file does not exist.
func (f *Files) Drop(id string) error {
	err := os.Remove(f.snapshot(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (f *Files) put(ctx context.Context, id string, write func(path string) error) error {
	path := f.snapshot(id)
	is, err := f.awaitStatus(ctx, id)
	if err != nil {
		return err
	}
	_, missing := os.Stat(path)
	if is.Status == Active && errors.Is(missing, fs.ErrNotExist) {
		return nil // an earlier call has uploaded the content, and has removed the file
	}
	if is.Status != Active {
		if err := os.MkdirAll(f.Dir, 0o711); err != nil { //nolint:gosec // the users of QEMU and of driver programs need the x bit
			return err
		}
		if missing != nil {
			if err := write(path); err != nil {
				return err
			}
		}
		if err := f.upload(ctx, id, path); err != nil {
			return err
		}
		if is, err = f.Glance.get(ctx, "", id); err != nil {
			return err
		}
	}
	return is.verify(path)
}

// The status of an image without content (queued), and during an upload (saving).
const (
	queued = "queued"
	saving = "saving"
)

// savingTime is the time that the image service has to detect an interrupted upload.
const savingTime = time.Minute

// awaitStatus waits until no upload of an image runs, and returns the image. Errors: NotFound; Conflict if the status is neither queued nor active after that.
func (f *Files) awaitStatus(ctx context.Context, id string) (*Image, error) {
	for deadline := time.Now().Add(savingTime); ; {
		is, err := f.Glance.get(ctx, "", id)
		switch {
		case err != nil:
			return nil, err
		case is.Status == Active, is.Status == queued:
			return is, nil
		case is.Status != saving, time.Now().After(deadline):
			return nil, fault.New(fault.Conflict, "the image has the status %s", is.Status)
		}
		t := time.NewTimer(time.Second)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

// upload sends a file to the image service. The body is sent in chunks (HTTP chunked encoding): after an interruption the last chunk is missing, so the image service drops the content.
func (f *Files) upload(ctx context.Context, id, path string) error {
	open := func() (io.ReadCloser, error) { return os.Open(path) }
	reply, err := f.Glance.transfer(ctx, http.MethodPut, id, open, http.StatusNoContent)
	if err != nil {
		return err
	}
	return reply.Body.Close()
}

// verify returns Invalid if an image does not have the content of a file.
func (i *Image) verify(path string) error {
	sum, want, err := i.newHash()
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // opened only to read
	n, err := io.Copy(sum, file)
	if err == nil && (i.Status != Active || n != i.Size || !equalHash(sum.Sum(nil), want)) {
		err = fault.New(fault.Invalid, "the image service has %d bytes with the checksum %s and the status %s, but the snapshot has %d bytes with %x", i.Size, want, i.Status, n, sum.Sum(nil))
	}
	return err
}

// Rotate removes older backups of a server: those of the type r.Type in the project r.ProjectID. It keeps the newest r.Keep active backups, and the backups in another status that are
// newer than the oldest of the kept ones. A backup that cannot be removed is logged and stays. Errors: Unavailable if the backups cannot be listed.
func (f *Files) Rotate(ctx context.Context, server string, r compute.Rotation) error {
	list, err := f.Glance.backups(ctx, server, r)
	if err != nil {
		return err
	}
	kept := 0
	for _, is := range list {
		if kept < r.Keep {
			if is.Status == Active {
				kept++
			}
			continue
		}
		if err := f.Glance.Discard(ctx, is.ID, false); err != nil {
			if ctx.Err() != nil {
				return err
			}
			f.Glance.cfg.Logger.WarnContext(ctx, "older backup not removed", "server", server, "image", is.ID, "error", err)
		}
	}
	return nil
}
