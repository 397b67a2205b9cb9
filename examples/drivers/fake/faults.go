package fake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// methods are the names of compute.Driver's methods in options and metadata that define faults.
var methods = []string{
	"spawn", "destroy", "list", "get", "power_on", "power_off", "reboot", "resources", "pause", "unpause",
	"suspend", "resume", "resize", "confirm_resize", "revert_resize", "rescue", "unrescue", "snapshot", "remove_image", "set_password", "inject_nmi", "platforms", "console_log", "console", "live_migrate",
	"attach_volume", "detach_volume", "attach_interface", "detach_interface", "metrics", "diagnostics", "events", "info",
}

// callFault is one fault of a call.
type callFault struct {
	what  string             // slow, fail, hang, crash or wrong
	after bool               // the fault comes after the effect of the call
	times int                // the number of calls that have the fault; 0: all calls
	hosts []string           // the hosts that have the fault; nil: all hosts
	took  time.Duration      // the delay of slow
	code  fault.Code         // the code of fail
	state compute.PowerState // the state of wrong
}

// parseFaults reads a list of faults, separated by ";". Each fault has the form
//
//	slow DURATION | fail [CODE] | hang | crash | wrong STATE   [after] [TIMES] [on HOST[,HOST]]
func parseFaults(text string) ([]callFault, error) {
	var out []callFault
	for one := range strings.SplitSeq(text, ";") {
		words := strings.Fields(one)
		if len(words) == 0 {
			continue
		}
		t, err := parseFault(words)
		if err != nil {
			return nil, fault.New(fault.Invalid, "fault %q: %w", strings.TrimSpace(one), err)
		}
		out = append(out, t)
	}
	return out, nil
}

// faultParsers maps the first word of a fault to the function that reads the following words. The function returns the words that it
// has not read.
var faultParsers = map[string]func(t *callFault, words []string) (rest []string, err error){
	"slow":  parseSlow,
	"fail":  parseFail,
	"hang":  func(_ *callFault, words []string) ([]string, error) { return words, nil },
	"crash": func(_ *callFault, words []string) ([]string, error) { return words, nil },
	"wrong": parseWrong,
}

func parseFault(words []string) (t callFault, err error) {
	t.what = words[0]
	parse := faultParsers[t.what]
	if parse == nil {
		return t, fmt.Errorf("%q is not one of slow, fail, hang, crash and wrong", t.what)
	}
	if words, err = parse(&t, words[1:]); err != nil {
		return t, err
	}
	for len(words) > 0 {
		n, err := strconv.Atoi(words[0])
		switch {
		case words[0] == "after" && t.what != "wrong" && t.what != "slow":
			t.after = true
		case words[0] == "on" && len(words) > 1:
			words = words[1:]
			t.hosts = strings.Split(words[0], ",")
		case err == nil && n > 0:
			t.times = n
		default:
			return t, fmt.Errorf("%q is not expected here", words[0])
		}
		words = words[1:]
	}
	return t, nil
}

func parseSlow(t *callFault, words []string) ([]string, error) {
	if len(words) > 0 {
		var err error
		if t.took, err = time.ParseDuration(words[0]); err == nil {
			return words[1:], nil
		}
	}
	return nil, errors.New("slow needs a duration, such as 2s")
}

// parseFail reads the code, if words begins with one.
func parseFail(t *callFault, words []string) ([]string, error) {
	for c := fault.Internal; len(words) > 0 && c <= fault.Canceled; c++ {
		if strings.EqualFold(c.String(), words[0]) {
			t.code = c
			return words[1:], nil
		}
	}
	return words, nil
}

func parseWrong(t *callFault, words []string) ([]string, error) {
	name := ""
	if len(words) > 0 {
		name, words = words[0], words[1:]
	}
	for _, s := range []compute.PowerState{compute.Running, compute.Paused, compute.Shutdown, compute.Crashed, compute.Suspended} {
		if strings.EqualFold(s.String(), name) {
			t.state = s
			return words, nil
		}
	}
	return nil, fmt.Errorf("%q is not a state, such as CRASHED", name)
}

// withFaults runs the effect of a call, with the faults that the configuration and the server's metadata define. The parameters id
// and metadata are empty for a call that is not about one server.
func (d *Driver) withFaults(ctx context.Context, method, id string, metadata map[string]string, effect func() error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", method, id, err)
	}
	list := d.cfg.faults[method]
	if text := metadata["fake:"+method]; text != "" {
		more, err := parseFaults(text)
		if err != nil {
			return fault.New(fault.Invalid, "metadata fake:%s: %w", method, err)
		}
		list = slices.Concat(list, more)
	}
	if err := d.injectFaults(ctx, method, id, list, false); err != nil {
		return err
	}
	if err := effect(); err != nil {
		return err
	}
	return d.injectFaults(ctx, method, id, list, true)
}

// injectFaults injects those faults of the list that come before the effect of a call, or, if after is true, those that come after the
// effect.
func (d *Driver) injectFaults(ctx context.Context, method, id string, list []callFault, after bool) error {
	for i := range list {
		if t := &list[i]; after == (t.after || t.what == "wrong") {
			if err := d.injectFault(ctx, method, id, i, t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Driver) injectFault(ctx context.Context, method, id string, i int, t *callFault) error {
	if t.hosts != nil && !slices.Contains(t.hosts, d.cfg.Host) {
		return nil
	}
	if t.times > 0 && !d.countFault(fmt.Sprintf("%s-%s-%d", method, id, i), t.times) {
		return nil
	}
	switch t.what {
	case "slow":
		timer := time.NewTimer(t.took)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("%s %s: %w", method, id, ctx.Err())
		}
	case "hang":
		<-ctx.Done()
		return fmt.Errorf("%s %s: %w", method, id, ctx.Err())
	case "fail":
		return fault.New(t.code, "%s is configured to fail on %s", method, d.cfg.Host)
	case "crash":
		d.cfg.Crash()
	case "wrong":
		return d.changeServer(id, func(s *server) error { s.Power = t.state; return nil })
	}
	return nil
}

// countFault reports whether a fault has occurred less than limit times, and if so, counts it. If the driver has a directory, the
// number is kept in a file and so survives crashes of the process.
func (d *Driver) countFault(key string, limit int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.counts[key]
	if d.cfg.Dir != "" {
		raw, _ := os.ReadFile(filepath.Join(d.cfg.Dir, counts, key)) // no file means 0
		n, _ = strconv.Atoi(string(raw))
	}
	if n >= limit {
		return false
	}
	d.counts[key] = n + 1
	if d.cfg.Dir != "" {
		_ = os.WriteFile(filepath.Join(d.cfg.Dir, counts, key), []byte(strconv.Itoa(n+1)), 0o600)
	}
	return true
}

// forgetCounts drops the counts of a server's faults.
func (d *Driver) forgetCounts(id string) {
	for key := range d.counts {
		if strings.Contains(key, "-"+id+"-") {
			delete(d.counts, key)
		}
	}
	if d.cfg.Dir != "" {
		files, _ := filepath.Glob(filepath.Join(d.cfg.Dir, counts, "*-"+id+"-*"))
		for _, f := range files {
			_ = os.Remove(f)
		}
	}
}
