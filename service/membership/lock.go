package membership

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/armature-go/armature/internal/filelock"
)

// FileLock is a lock on a file. The process holds the lock until Stop, or until the process ends. FileLock also makes the
// [Instance] of this start of the process. It is a service.Part, and safe for concurrent use. Make one with [NewFileLock].
type FileLock struct {
	kind, host, path string

	mu       sync.Mutex
	file     *os.File // nil while the lock is not held
	instance Instance
}

// NewFileLock returns the lock of a member's file. Each member needs its own file. The file should be on a local file
// system, such as below the state path of the service. NewFileLock opens nothing.
func NewFileLock(kind, host, path string) *FileLock {
	return &FileLock{kind: kind, host: host, path: path}
}

// Start acquires the lock. It creates the file and its directory if they do not exist. [ErrHeld]: another process holds
// the lock; the error names the process and says what to do. Other errors are those of the file system.
//
// The kernel releases the lock when the process ends, for whatever reason. A copy of the file is another lock. After a
// restart of the machine, the same file is also another lock.
func (l *FileLock) Start(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		return nil
	}
	if err := l.lockFile(); err != nil {
		return fmt.Errorf("lock file %s: %w", l.path, err)
	}
	return nil
}

// lockFile opens and locks the file, and writes this instance to it.
func (l *FileLock) lockFile() (err error) {
	if err := os.MkdirAll(filepath.Dir(l.path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // the file was not written, or the disk fails
		}
	}()
	free, err := filelock.Try(f)
	if err != nil {
		return err
	}
	last, _ := readInstance(f) // an instance that cannot be read is ignored
	if !free {
		return heldError(l.kind, l.host, last, ": stop that process, or give this one another host and another state path")
	}
	if err := samePath(f, l.path); err != nil {
		return err
	}
	machine, err := os.Hostname()
	if err != nil {
		machine = "?"
	}
	now := time.Now()
	l.instance = Instance{
		ID: uuid.NewString(), Lock: lockName(f), Start: max(last.Start+1, now.UnixMicro()),
		Process: fmt.Sprintf("process %d on machine %.200s, started %s", os.Getpid(), machine, now.UTC().Format(time.RFC3339)),
	}
	raw, err := json.Marshal(l.instance)
	if err != nil {
		return err
	}
	// The JSON is written with one call, because a process that ends here must leave a Start that can be read.
	_, err = f.WriteAt(raw, 0)
	if err = cmp.Or(err, f.Truncate(int64(len(raw))), f.Sync()); err != nil {
		return err
	}
	l.file = f
	return nil
}

// readInstance reads the instance that the last holder has written to the file.
func readInstance(f *os.File) (i Instance, err error) {
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<16))
	if err == nil {
		err = json.Unmarshal(raw, &i)
	}
	return i, err
}

// samePath returns an error if the file was removed or replaced before it was locked.
func samePath(f *os.File, path string) error {
	open, err := f.Stat()
	if err != nil {
		return err
	}
	if named, err := os.Stat(path); err != nil || !os.SameFile(open, named) {
		return errors.Join(errors.New("the file was replaced meanwhile"), err)
	}
	return nil
}

// Instance returns the instance of this start of the process. Its ID is empty before Start.
func (l *FileLock) Instance() Instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.instance
}

// Stop releases the lock by closing its file. It has no effect before Start and after another Stop.
func (l *FileLock) Stop(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
