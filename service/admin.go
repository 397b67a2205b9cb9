package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/armature-go/armature/fault"
)

// AdminConfig configures [App.Admin]. Addr is required.
type AdminConfig struct {
	// Addr is where it listens, as of [HTTPConfig]: a loopback address or a Unix
	// socket. It asks nobody who they are.
	Addr string
	// Metrics serves /metrics. Default: there are none.
	Metrics http.Handler
	// Config returns what /debug/config shows, as JSON: each option's value and where
	// it came from, without secrets. Default: nothing.
	Config func() any
	// Level is the level of the log, which /debug/loglevel shows and sets. Default: it
	// cannot be set.
	Level *slog.LevelVar
}

// Admin returns a part that serves an operator, for one machine only:
//
//	GET  /livez                 200 while the process serves at all
//	GET  /readyz                200, or 503, with each check by name and why it fails
//	GET  /metrics               for Prometheus
//	GET  /debug/inflight        what runs, the longest first
//	GET  /debug/config          each option's value and where it came from
//	GET  /debug/loops           the periodic loops; POST /debug/loops/{name}/run calls one now
//	GET  /debug/loglevel        the log's level; PUT {"level": "debug"} sets it
//	GET  /debug/report          the report that SIGUSR2 writes
//	GET  /debug/pprof/          profiles
//	POST /debug/reload          as SIGHUP
//
// Add it first: it then answers before the others are started, and while they drain.
func (a *App) Admin(cfg AdminConfig) *HTTPPart {
	m := http.NewServeMux()
	m.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		show(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	m.HandleFunc("GET /readyz", a.readyz)
	if cfg.Metrics != nil {
		m.Handle("GET /metrics", cfg.Metrics)
	}
	m.HandleFunc("GET /debug/inflight", func(w http.ResponseWriter, _ *http.Request) { show(w, http.StatusOK, a.inflight.List()) })
	m.HandleFunc("GET /debug/config", func(w http.ResponseWriter, _ *http.Request) {
		var v any = struct{}{}
		if cfg.Config != nil {
			v = cfg.Config()
		}
		show(w, http.StatusOK, v)
	})
	m.HandleFunc("GET /debug/loops", func(w http.ResponseWriter, _ *http.Request) { show(w, http.StatusOK, a.Loops()) })
	m.HandleFunc("POST /debug/loops/{name}/run", a.runLoop)
	m.HandleFunc("GET /debug/loglevel", func(w http.ResponseWriter, _ *http.Request) { showLevel(w, cfg.Level) })
	m.HandleFunc("PUT /debug/loglevel", func(w http.ResponseWriter, r *http.Request) { a.setLevel(w, r, cfg.Level) })
	m.HandleFunc("GET /debug/report", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_ = a.Report(r.Context(), w) // the client has gone
	})
	m.HandleFunc("POST /debug/reload", func(w http.ResponseWriter, r *http.Request) { done(w, a.Reload(context.WithoutCancel(r.Context()))) })
	m.HandleFunc("GET /debug/pprof/", pprof.Index)
	m.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	m.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	m.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return HTTP(cfg.Addr, local(m))
}

// local refuses what a web page that somebody on the machine looks at could send: a
// browser says where such a request comes from.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" {
			done(w, fault.New(fault.Denied, "requests of web pages are not answered"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

type checkView struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Error  string `json:"error,omitempty"`
	TookMS int64  `json:"took_ms"`
}

func (a *App) readyz(w http.ResponseWriter, r *http.Request) {
	reply := struct {
		Status string      `json:"status"`
		Phase  string      `json:"phase"`
		Checks []checkView `json:"checks"`
	}{"ok", phaseNames[a.phase.Load()], []checkView{}}
	status := http.StatusOK
	if reply.Phase != phaseNames[running] {
		status, reply.Status = http.StatusServiceUnavailable, "unavailable"
	}
	for _, c := range a.Checks(r.Context()) {
		v := checkView{Name: c.Name, Status: "ok", TookMS: c.Took.Milliseconds()}
		if c.Err != nil {
			v.Status, v.Error = "failed", c.Err.Error()
			status, reply.Status = http.StatusServiceUnavailable, "unavailable"
		}
		reply.Checks = append(reply.Checks, v)
	}
	show(w, status, reply)
}

func (a *App) runLoop(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	for _, p := range a.parts {
		if l, ok := p.Part.(*LoopPart); ok && p.name == name {
			begin := time.Now()
			if err := l.RunNow(r.Context()); err != nil {
				done(w, err)
				return
			}
			show(w, http.StatusOK, map[string]any{"took_ms": time.Since(begin).Milliseconds()})
			return
		}
	}
	done(w, fault.New(fault.NotFound, "there is no loop %q; GET /debug/loops lists them", name))
}

type levelView struct {
	Level string `json:"level"`
}

func showLevel(w http.ResponseWriter, level *slog.LevelVar) {
	if level == nil {
		done(w, fault.New(fault.Unimplemented, "this process has no level of the log that can be set"))
		return
	}
	show(w, http.StatusOK, levelView{level.Level().String()})
}

func (a *App) setLevel(w http.ResponseWriter, r *http.Request, level *slog.LevelVar) {
	var in levelView
	var l slog.Level
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&in)
	if err == nil {
		err = l.UnmarshalText([]byte(in.Level))
	}
	if err != nil {
		done(w, fault.New(fault.Invalid, `the body is {"level": "debug"}, or info, warn or error: %w`, err))
		return
	}
	if level != nil {
		a.cfg.Logger.WarnContext(r.Context(), "level of the log set", "from", level.Level().String(), "to", l.String())
		level.Set(l)
	}
	showLevel(w, level)
}

// done answers with an error, or that there was none.
func done(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case err == nil:
		show(w, http.StatusOK, map[string]string{"status": "ok"})
		return
	case errors.Is(err, fault.Invalid):
		status = http.StatusBadRequest
	case errors.Is(err, fault.Denied):
		status = http.StatusForbidden
	case errors.Is(err, fault.NotFound):
		status = http.StatusNotFound
	case errors.Is(err, fault.Unimplemented):
		status = http.StatusNotImplemented
	}
	show(w, status, map[string]string{"error": err.Error()})
}

func show(w http.ResponseWriter, status int, v any) {
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		status, out = http.StatusInternalServerError, fmt.Appendf(nil, `{"error": %q}`, err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(out, '\n')) // the client has gone: nobody is left to tell
}
