package driver_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

// otherUID is the id of a user that is neither root nor the user of the tests.
const otherUID = 65534

// TestTrust: a program runs only if no user except root and the user of this process could replace it. In each case another user
// could change one part: the file, a directory of its path, a symbolic link or the link's target. The error names this part, its
// owner and mode, and the remedy.
func TestTrust(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	const name = "armature-echo-good"
	for _, tt := range []struct {
		name string
		root bool // the case needs root
		// spoil changes the directory top, whose directory top/in has the program. It returns the plugin_dir and the part
		// of the path that another user could change, or "" if no part is wrong.
		spoil func(t *testing.T, top string) (dir, wrong string, err error)
		says  string
	}{
		{"as it should be", false, func(_ *testing.T, top string) (string, string, error) { return top + "/in", "", nil }, ""},
		{"all users can write plugin_dir", false, func(_ *testing.T, top string) (string, string, error) {
			return top + "/in", top + "/in", os.Chmod(top+"/in", 0o777)
		}, "mode drwxrwxrwx"},
		{"its group can write plugin_dir", false, func(_ *testing.T, top string) (string, string, error) {
			return top + "/in", top + "/in", os.Chmod(top+"/in", 0o775)
		}, "mode drwxrwxr-x"},
		{"all users can write a directory above", false, func(_ *testing.T, top string) (string, string, error) {
			return top + "/in", top, os.Chmod(top, 0o777)
		}, "chmod go-w "},
		{"a sticky directory above", false, func(_ *testing.T, top string) (string, string, error) {
			return top + "/in", "", os.Chmod(top, 0o777|os.ModeSticky)
		}, ""},
		{"its group can write the program", false, func(_ *testing.T, top string) (string, string, error) {
			return top + "/in", top + "/in/" + name, os.Chmod(top+"/in/"+name, 0o775)
		}, "mode -rwxrwxr-x"},
		{"a link in a directory that all users can write", false, func(t *testing.T, top string) (string, string, error) {
			link := t.TempDir()
			return link, link, errors.Join(os.Symlink(top+"/in/"+name, filepath.Join(link, name)), os.Chmod(link, 0o777))
		}, "mode drwxrwxrwx"},
		{"a link to a directory that all users can write", false, func(t *testing.T, top string) (string, string, error) {
			link := t.TempDir()
			return link, top + "/in", errors.Join(os.Symlink(top+"/in/"+name, filepath.Join(link, name)), os.Chmod(top+"/in", 0o777))
		}, "mode drwxrwxrwx"},
		{"plugin_dir is a link to a directory that all users can write", false, func(t *testing.T, top string) (string, string, error) {
			link := filepath.Join(t.TempDir(), "plugins")
			return link, top, errors.Join(os.Symlink(top+"/in", link), os.Chmod(top, 0o777))
		}, "mode drwxrwxrwx"},
		{"a relative link", false, func(_ *testing.T, top string) (string, string, error) {
			return top + "/links", "", errors.Join(os.Mkdir(top+"/links", 0o755), os.Symlink("../in/"+name, top+"/links/"+name))
		}, ""},
		{"links in a circle", false, func(_ *testing.T, top string) (string, string, error) {
			return top + "/links", "links", errors.Join(os.Mkdir(top+"/links", 0o755), os.Symlink(name, top+"/links/"+name))
		}, ""},
		{"the program of another user", true, func(_ *testing.T, top string) (string, string, error) {
			return top + "/in", top + "/in/" + name, os.Chown(top+"/in/"+name, otherUID, 0)
		}, "(65534), mode -rwxr-xr-x"},
		{"plugin_dir of another user", true, func(_ *testing.T, top string) (string, string, error) {
			return top + "/in", top + "/in", os.Chown(top+"/in", otherUID, 0)
		}, "chown -h root "},
		{"another user's program in a sticky directory", true, func(_ *testing.T, top string) (string, string, error) {
			return top + "/in", top + "/in/" + name, errors.Join(os.Chmod(top+"/in", 0o777|os.ModeSticky), os.Chown(top+"/in/"+name, otherUID, 0))
		}, "the file"},
		{"another user's link in a sticky directory", true, func(t *testing.T, top string) (string, string, error) {
			link := t.TempDir()
			return link, link + "/" + name, errors.Join(os.Symlink(top+"/in/"+name, link+"/"+name), os.Chmod(link, 0o777|os.ModeSticky), os.Lchown(link+"/"+name, otherUID, 0))
		}, "the symbolic link"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.root && os.Geteuid() != 0 {
				t.Skip("only root gives files to other users")
			}
			top := t.TempDir()
			err := errors.Join(os.Mkdir(top+"/in", 0o755), writeProgram(top+"/in/"+name, raw, 0o755))
			if err != nil {
				t.Fatal(err)
			}
			dir, wrong, err := tt.spoil(t, top)
			if err != nil {
				t.Fatal(err)
			}
			p, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "good", Dir: dir, SocketDir: socketDir(t), Logger: slog.New(slog.DiscardHandler)})
			if p != nil {
				defer p.Close(t.Context())
			}
			switch {
			case wrong == "" && err != nil:
				t.Error(err)
			case wrong != "" && err == nil:
				t.Errorf("the program runs, though %s could be changed by another user", wrong)
			case tt.says != "" && (fault.CodeOf(err) != fault.Denied || !strings.Contains(err.Error(), wrong+" (owner ") || !strings.Contains(err.Error(), tt.says)):
				t.Errorf("%v: %v\nwant Denied with %q and %q", fault.CodeOf(err), err, wrong, tt.says)
			}
		})
	}
}

// TestPinOfTheFileThatRuns: the file whose checksum is compared is the one that is executed. Meanwhile another file
// repeatedly gets the same name. That file is never executed.
func TestPinOfTheFileThatRuns(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	evil := filepath.Join(dir, "evil-has-run")
	path := filepath.Join(dir, "armature-echo-good")
	put := func(text []byte) {
		if err := errors.Join(writeProgram(path+".new", text, 0o755), os.Rename(path+".new", path)); err != nil {
			t.Error(err)
		}
	}
	put(raw)
	sum := sha256.Sum256(raw)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for t.Context().Err() == nil {
			put([]byte("#!/bin/sh\ntouch " + evil + "\n"))
			put(raw)
		}
	}()
	started, refused := 0, 0
	for range 40 {
		p, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{
			Program: "good", Dir: dir, SHA256: hex.EncodeToString(sum[:]), SocketDir: socketDir(t), Logger: slog.New(slog.DiscardHandler),
		})
		switch {
		case err == nil:
			started++
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
		case errors.Is(err, fault.Denied):
			refused++
		default:
			t.Errorf("neither started nor refused: %v", err)
		}
	}
	if _, err := os.Stat(evil); err == nil {
		t.Error("a file with another checksum was executed")
	}
	t.Logf("%d started, %d refused", started, refused)
	t.Cleanup(func() { <-ended })
}

// TestPinOfAScript: the interpreter of a script with a checksum can read the script.
func TestPinOfAScript(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := []byte("#!/bin/sh\nexec " + self + "\n")
	if err := os.WriteFile(filepath.Join(dir, "armature-echo-good"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(script)
	launchPlugin(t, driver.PluginConfig{Program: "good", Dir: dir, SHA256: hex.EncodeToString(sum[:])})
}

// TestUnreadableLink: an error of the file system on the way to the program has a code and the program's path. The link
// /proc/PID/exe of a process that has ended exists, but has no target.
func TestUnreadableLink(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has /proc/PID/exe")
	}
	child := exec.CommandContext(t.Context(), "true")
	out, err := child.StdoutPipe()
	if err == nil {
		err = child.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer child.Wait() //nolint:errcheck // the child has the exit code 0
	if _, err := io.ReadAll(out); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/%d/exe", child.Process.Pid)
	waittest.Until(t, "the end of the child", func() bool {
		_, err := os.Readlink(path)
		return err != nil
	})
	p, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: path, SocketDir: socketDir(t), Logger: slog.New(slog.DiscardHandler)})
	if p != nil || fault.CodeOf(err) != fault.NotFound || !strings.Contains(err.Error(), "the driver's program "+path+": readlink ") {
		t.Errorf("%v: %v\nwant NotFound with the program's path", fault.CodeOf(err), err)
	}
}

// TestUnusableEntry: an entry of plugin_dir that exists, but cannot be used, is not reported as missing.
func TestUnusableEntry(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]fault.Code{"armature-echo-circle": fault.Invalid, "absent": fault.NotFound} {
		dir := t.TempDir()
		path := filepath.Join(dir, "armature-echo-circle")
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		p, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "circle", Dir: dir, SocketDir: socketDir(t), Logger: slog.New(slog.DiscardHandler)})
		if p != nil || fault.CodeOf(err) != want || !strings.Contains(err.Error(), "the driver's program "+path+": ") {
			t.Errorf("a link to %s: %v: %v\nwant %v with the program's path", target, fault.CodeOf(err), err, want)
		}
	}
}
