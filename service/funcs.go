package service

import "context"

// Funcs is a [Part] made of functions. A nil function does nothing and returns nil. Use Funcs for a database
// that is opened elsewhere and must be checked, or for work that must be done before the next
// part starts.
type Funcs struct {
	OnStart  func(ctx context.Context) error
	OnDrain  func(ctx context.Context) error
	OnStop   func(ctx context.Context) error
	OnCheck  func(ctx context.Context) error
	OnReload func(ctx context.Context) error
}

// callOptional calls f, or returns nil if f is nil.
func callOptional(ctx context.Context, f func(context.Context) error) error {
	if f == nil {
		return nil
	}
	return f(ctx)
}

// Start implements [Part].
func (f Funcs) Start(ctx context.Context) error { return callOptional(ctx, f.OnStart) }

// Drain implements [Drainer].
func (f Funcs) Drain(ctx context.Context) error { return callOptional(ctx, f.OnDrain) }

// Stop implements [Part].
func (f Funcs) Stop(ctx context.Context) error { return callOptional(ctx, f.OnStop) }

// Check implements [Checker].
func (f Funcs) Check(ctx context.Context) error { return callOptional(ctx, f.OnCheck) }

// Reload implements [Reloader].
func (f Funcs) Reload(ctx context.Context) error { return callOptional(ctx, f.OnReload) }
