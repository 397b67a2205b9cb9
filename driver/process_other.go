//go:build !linux

package driver

import "github.com/armature-go/armature/fault"

// secure has nothing to do here: a program ends with its standard input.
func (p *process) secure(...string) error {
	if p.cfg.User != "" || p.cfg.MaxFiles != 0 || p.cfg.MaxMemoryMiB != 0 {
		return fault.New(fault.Unimplemented, "the options user, max_files and max_memory_mib work on Linux only")
	}
	return nil
}

// executeOpen has nothing to do: the file is executed by its name, and only its owner and root could
// replace it in the meantime.
func (p *process) executeOpen() {}

// run starts the program and waits for its end.
func (p *process) run(started chan<- error) {
	err := p.cmd.Start()
	if err == nil {
		p.begun()
	}
	started <- err
	if err != nil {
		return
	}
	p.status = p.cmd.Wait()
	close(p.exited)
}
