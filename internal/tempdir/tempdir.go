// Package tempdir makes temporary directories. If a process is killed before it has removed its directory, a later process
// removes the directory. Each directory has a file that is locked while its process runs.
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

// lockName is the name of the locked file in a directory, and marker is its content. A directory of another program is not
// removed, even if it has a file of this name, because the file has another content.
const (
	lockName = ".lock"
	marker   = "temporary folder of an Armature service, removed when its process has ended\n"
)

// Dir is a temporary directory of this process.
type Dir struct {
	// Path is the directory's path.
	Path string
	lock *os.File
}

// Make makes a directory in parent with a name that begins with prefix. Only the user of this process can use the
// directory. The caller removes it.
func Make(parent, prefix string) (*Dir, error) {
	path, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, err
	}
	d := &Dir{Path: path}
	if err := d.lockFolder(); err != nil {
		return nil, errors.Join(err, d.Remove())
	}
	return d, nil
}

// lockFolder makes the lock file. It locks the file before the file gets its name, so that no other process finds it
// unlocked.
func (d *Dir) lockFolder() (err error) {
	early := filepath.Join(d.Path, lockName+".new")
	if d.lock, err = os.OpenFile(early, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	if _, err = filelock.Try(d.lock); err != nil { // the lock is free, because no other process knows the file
		return err
	}
	if _, err = d.lock.WriteString(marker); err != nil {
		return err
	}
	return os.Rename(early, filepath.Join(d.Path, lockName))
}

// Remove removes the directory and its contents, and then releases the lock.
func (d *Dir) Remove() error {
	err := os.RemoveAll(d.Path)
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// Sweep removes the directories in parent whose names begin with prefix, and whose processes have ended without
// removing them. It returns their paths. It keeps a directory
//
//   - that [Make] has not made;
//   - whose process still runs;
//   - whose lock file does not belong to the user of this process;
//   - that belongs neither to this user nor to one of owners, which are numbers of users.
//
// The error lists the directories that could not be removed. On a system without file locks Sweep does nothing.
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
		if !errors.Is(one, fs.ErrNotExist) { // if it does not exist, its process or another sweep has removed it
			err = errors.Join(err, one)
		}
	}
	return removed, err
}

// sweepDir removes a directory whose process has ended, and reports whether it has done so.
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
	defer func() { _ = lock.Close() }() // an error does not matter, because nothing was written
	if free, err := filelock.Try(lock); err != nil || !free {
		return false, err
	}
	if text, err := io.ReadAll(io.LimitReader(lock, int64(len(marker))+1)); err != nil || string(text) != marker {
		return false, err
	}
	return true, os.RemoveAll(path)
}
