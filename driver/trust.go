package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
)

// maxLinks is how many symbolic links a path may have, as on Linux.
const maxLinks = 40

// openProgram opens the program at an absolute path. It checks the file, each directory of its path and each symbolic
// link: only root and the user of this process may be able to choose which file is executed, see ADR 19. The caller closes
// the file. The parameter pin is the program's SHA-256 in hexadecimal. If pin is empty, every checksum is accepted. Errors:
//
//   - NotFound: the program, or the target of a symbolic link, does not exist.
//   - Denied: another user could change the file or its path, or the file's checksum differs from pin.
//   - Invalid: the file is not an executable file, has more than maxLinks symbolic links in its path, or cannot be read.
//   - Unimplemented: the system does not report the owners of files.
func openProgram(path, pin string) (*os.File, error) {
	resolved, err := trustedPath(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(resolved)
	if err != nil {
		return nil, programError(path, err)
	}
	if err = checkProgram(f, path, pin); err != nil {
		_ = f.Close() // the file was only read
		return nil, err
	}
	return f, nil
}

// checkProgram checks the open file at path: its type, its mode, its owner and, unless pin is empty, its checksum.
func checkProgram(f *os.File, path, pin string) error {
	info, err := f.Stat()
	switch {
	case err != nil:
		return programError(path, err)
	case !info.Mode().IsRegular():
		return fault.New(fault.Invalid, "the driver's program %s is not a file", path)
	case info.Mode()&0o111 == 0:
		return fault.New(fault.Invalid, "the driver's program %s is not executable: run chmod 755 %s", path, text.ShellWord(path))
	}
	if err := checkOwner(path, f.Name(), info); err != nil || pin == "" {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return programError(path, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, pin) {
		return fault.WithReason(fault.New(fault.Denied, "the driver's program %s has the SHA-256 %s, but the configuration requires %s", path, got, pin),
			"", map[string]string{"option": "plugin_sha256"})
	}
	return nil
}

// programError returns an error of the file system with a code and the program's path.
func programError(path string, err error) error {
	code := fault.Invalid
	if errors.Is(err, fs.ErrNotExist) {
		code = fault.NotFound
	}
	return fault.New(code, "the driver's program %s: %w", path, err)
}

// trustedPath resolves the symbolic links of an absolute path. It checks the owner and the mode of each directory and each link
// on the way. It does not check the file: [checkProgram] checks it when it is open. Other users cannot change a checked
// directory, so the result stays valid.
func trustedPath(path string) (string, error) {
	root, err := os.Lstat(string(filepath.Separator))
	if err != nil {
		return "", programError(path, err)
	}
	if err := checkOwner(path, string(filepath.Separator), root); err != nil {
		return "", err
	}
	w := pathWalk{program: path, at: string(filepath.Separator), rest: splitPath(path)}
	for len(w.rest) > 0 {
		if err := w.step(); err != nil {
			return "", err
		}
	}
	return w.at, nil
}

func splitPath(path string) []string { return strings.Split(path, string(filepath.Separator)) }

// pathWalk is the state of trustedPath: how much of a program's path is resolved.
type pathWalk struct {
	program string
	at      string   // the part that is resolved and checked
	rest    []string // the names that are still to be resolved
	links   int      // number of symbolic links that were followed
}

// step resolves and checks the next name.
func (w *pathWalk) step() error {
	name := w.rest[0]
	w.rest = w.rest[1:]
	switch name {
	case "", ".":
		return nil
	case "..":
		w.at = filepath.Dir(w.at)
		return nil
	}
	next := filepath.Join(w.at, name)
	info, err := os.Lstat(next)
	if err != nil {
		return programError(w.program, err)
	}
	if info.Mode().Type() == fs.ModeSymlink {
		return w.followLink(next, info)
	}
	if info.IsDir() {
		if err := checkOwner(w.program, next, info); err != nil {
			return err
		}
	}
	w.at = next
	return nil
}

// followLink checks a symbolic link and puts the names of its target before the rest of the path.
func (w *pathWalk) followLink(link string, info fs.FileInfo) error {
	if w.links++; w.links > maxLinks {
		return fault.New(fault.Invalid, "the driver's program %s: too many symbolic links", w.program)
	}
	if err := checkOwner(w.program, link, info); err != nil {
		return err
	}
	target, err := os.Readlink(link)
	if err != nil {
		return programError(w.program, err)
	}
	if filepath.IsAbs(target) {
		w.at = string(filepath.Separator)
	}
	w.rest = append(splitPath(target), w.rest...)
	return nil
}

// checkOwner returns an error if a user other than root and the user of this process could change a part of a program's
// path. A directory with the sticky bit, such as /tmp, may be writable by all users: they can add entries, but cannot
// replace an entry of another user. The owner of the entry in the path is also checked.
func checkOwner(program, part string, info fs.FileInfo) error {
	owner, ok := ownerOf(info)
	if !ok {
		return fault.New(fault.Unimplemented, "the driver's program %s: this system does not report the owner of %s", program, part)
	}
	kind := map[fs.FileMode]string{fs.ModeDir: "the directory", fs.ModeSymlink: "the symbolic link"}[info.Mode().Type()]
	if kind == "" {
		kind = "the file"
	}
	detail, remedy := "", ""
	switch mode := info.Mode(); {
	case owner != 0 && owner != os.Geteuid():
		detail, remedy = "belongs to another user", "chown -h root "+text.ShellWord(part)
	case mode.Type() == fs.ModeSymlink: // the mode of a link has no effect
	case mode&0o022 != 0 && (!mode.IsDir() || mode&fs.ModeSticky == 0):
		detail, remedy = "can be written by its group or by all users", "chmod go-w "+text.ShellWord(part)
	}
	if detail == "" {
		return nil
	}
	trusted := "root"
	if os.Geteuid() != 0 {
		trusted += " or " + userName(os.Geteuid())
	}
	return fault.New(fault.Denied, "the driver's program %s is not started, because another user could replace it: %s %s (owner %s, mode %s) %s; "+
		"the program and each directory of its path must belong to %s, and only the owner may write to them: run %s",
		program, kind, part, userName(owner), info.Mode(), detail, trusted, remedy)
}

// userName returns the name and the id of a user, for an error.
func userName(uid int) string {
	if name := lookupUser(uid); name != "" {
		return fmt.Sprintf("%s (%d)", name, uid)
	}
	return strconv.Itoa(uid)
}
