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

// secure gives the program a process group of its own, so that a terminal's ^C
// is the worker's alone; an end with its worker; and, if the configuration says
// so, a user, to whom the directories then belong.
func (p *process) secure(dirs ...string) error {
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if p.cfg.User == "" {
		return nil
	}
	u, err := user.Lookup(p.cfg.User)
	if err != nil {
		return fault.New(fault.Invalid, "option user: %w", err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32) // numbers on Linux
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for i, kv := range p.cmd.Env {
		if strings.HasPrefix(kv, "HOME=") {
			p.cmd.Env[i] = "HOME=" + u.HomeDir
		}
	}
	for _, dir := range dirs {
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			return fault.New(fault.Denied, "option user: only root runs a program as another user: %w", err)
		}
	}
	return nil
}

// executeOpen makes the open file the one that is executed: the sum is that of this file, also when
// another one takes its name in the meantime. The program has it as its file 3, which the interpreter
// of a script reads.
func (p *process) executeOpen() {
	p.cmd.Path, p.cmd.Err = "/proc/self/fd/3", nil
	p.cmd.ExtraFiles = []*os.File{p.program}
}

// run starts the program and waits for its end. The kernel kills a child when the
// thread that started it ends (PR_SET_PDEATHSIG), so the thread stays as long.
func (p *process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	if err == nil {
		p.begun()
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

// limit sets what the program may use of the machine.
func (p *process) limit() error {
	for _, l := range []struct {
		name     string
		resource int
		n        uint64
	}{
		{"max_files", unix.RLIMIT_NOFILE, uint64(max(p.cfg.MaxFiles, 0))},
		{"max_memory_mib", unix.RLIMIT_DATA, uint64(max(p.cfg.MaxMemoryMiB, 0)) << 20},
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
