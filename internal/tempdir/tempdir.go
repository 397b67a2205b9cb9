// Package tempdir makes temporary folders that a later process removes if theirs was killed. Each folder
// has a file that is locked as long as its process lives.
package tempdir

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/armature-go/armature/internal/filelock"
)

// lockName is the file of a folder that is locked, and marker is what it has: a folder of another program that has a
// file of this name is not removed.
const (
	lockName = ".lock"
	marker   = "temporary folder of an Armature service, removed when its process has ended\n"
)

// Dir is a temporary folder of this process.
type Dir struct {
	// Path is where it is.
	Path string
	lock *os.File
}

// Make makes a folder in parent, whose name begins with prefix. Only the user of this process can use it.
// The caller removes it.
func Make(parent, prefix string) (*Dir, error) {
	path, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, err
	}
	d := &Dir{Path: path}
	if err := d.hold(); err != nil {
		return nil, errors.Join(err, d.Remove())
	}
	return d, nil
}

// hold locks the file before it has its name, so that no other process finds it unlocked.
func (d *Dir) hold() (err error) {
	early := filepath.Join(d.Path, lockName+".new")
	if d.lock, err = os.OpenFile(early, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	if _, err = filelock.Try(d.lock); err != nil { // no other process has it
		return err
	}
	if _, err = d.lock.WriteString(marker); err != nil {
		return err
	}
	return os.Rename(early, filepath.Join(d.Path, lockName))
}

// Remove removes the folder with all that is in it, and then frees the lock.
func (d *Dir) Remove() error {
	err := os.RemoveAll(d.Path)
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// Sweep removes the folders in parent whose names begin with prefix, and whose processes have ended without
// removing them. It returns their paths. A folder is left alone if [Make] has not made it, if its process lives, if its
// lock belongs to another user than that of this process, or if the folder belongs to a user that is neither that one
// nor one of owners. The error is about folders that could not be removed. On a system
// without locks of files it does nothing.
func Sweep(parent, prefix string, owners ...int) (removed []string, err error) {
	if !filelock.Supported {
		return nil, nil
	}
	entries, err := os.ReadDir(parent)
	for _, e := range entries {
		if random, ok := strings.CutPrefix(e.Name(), prefix); !ok || strings.Trim(random, "0123456789") != "" { // os.MkdirTemp adds digits
			continue
		}
		path := filepath.Join(parent, e.Name())
		gone, one := sweepDir(path, append(owners, os.Geteuid()))
		if gone {
			removed = append(removed, path)
		}
		if !errors.Is(one, fs.ErrNotExist) { // its process, or another one that sweeps, was faster
			err = errors.Join(err, one)
		}
	}
	return removed, err
}

func sweepDir(path string, owners []int) (bool, error) {
	dir, err := os.Lstat(path)
	if err != nil || !dir.IsDir() || !ownedBy(dir, owners...) {
		return false, err
	}
	name := filepath.Join(path, lockName)
	info, err := os.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || !ownedBy(info, os.Geteuid()) {
		return false, err
	}
	lock, err := os.OpenFile(name, os.O_RDWR|noFollow, 0)
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }() // it was only locked
	if free, err := filelock.Try(lock); err != nil || !free {
		return false, err
	}
	if text, err := io.ReadAll(io.LimitReader(lock, int64(len(marker))+1)); err != nil || string(text) != marker {
		return false, err
	}
	return true, os.RemoveAll(path)
}
