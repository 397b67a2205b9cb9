package driver

import (
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/armature-go/armature/fault"
)

// secure gives the program a process group of its own, so that ^C on a terminal reaches
// the worker only. It makes the kernel kill the program when the worker ends. If User is set, it makes
// the program run as that user, and makes the user the owner of dirs.
func (p *process) secure(dirs ...string) error {
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if p.cfg.User == "" {
		return nil
	}
	u, err := user.Lookup(p.cfg.User)
	if err != nil {
		return optionError("plugin_user", err.Error())
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32) // on Linux ids are numbers
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for i, kv := range p.cmd.Env {
		if strings.HasPrefix(kv, "HOME=") {
			p.cmd.Env[i] = "HOME=" + u.HomeDir
		}
	}
	for _, dir := range dirs {
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			return fault.New(fault.Denied, "option plugin_user: only root can run a program as another user: %w", err)
		}
	}
	return nil
}

// executeOpen makes the command execute the open file, whose checksum was compared, even if another file
// gets its name meanwhile. The program has the file as its file descriptor 3, so that the interpreter
// of a script can read the file.
func (p *process) executeOpen() {
	p.cmd.Path, p.cmd.Err = "/proc/self/fd/3", nil
	p.cmd.ExtraFiles = []*os.File{p.program}
}

// startAndWait starts the program, sends the result of the start, and waits for the program's end. The kernel kills a child when
// the thread that has started it ends (PR_SET_PDEATHSIG), so the goroutine keeps its thread until then.
func (p *process) startAndWait(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	if err == nil {
		p.setRunning()
		if err := p.limit(); err != nil {
			p.fail(err)
		}
	}
	started <- err
	if err != nil {
		return
	}
	p.status = p.cmd.Wait()
	close(p.exited)
}

// limit sets the resource limits of the program.
func (p *process) limit() error {
	for _, l := range []struct {
		name     string
		resource int
		n        uint64
	}{
		{"plugin_max_files", unix.RLIMIT_NOFILE, uint64(max(p.cfg.MaxFiles, 0))},
		{"plugin_max_memory_mib", unix.RLIMIT_DATA, uint64(max(p.cfg.MaxMemoryMiB, 0)) << 20},
	} {
		if l.n == 0 {
			continue
		}
		if err := unix.Prlimit(p.cmd.Process.Pid, l.resource, &unix.Rlimit{Cur: l.n, Max: l.n}, nil); err != nil {
			return fmt.Errorf("option %s: %w", l.name, err)
		}
	}
	return nil
}
