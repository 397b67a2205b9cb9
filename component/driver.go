package component

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
)

// Driver adds the driver that the options name: one of builtIn, or a program. A program is supervised, and a reload may replace it.
// The result is a function that returns the driver in use. Call it for each use, because a reload may replace the driver. The error
// names the wrong option. Return it from Wire.
//
// Driver panics if the options do not embed [DriverOptions].
func Driver[D driver.Driver, O any](p *Process[O], k driver.Kind[D], builtIn *driver.Registry[D]) (func() D, error) {
	return DriverWith(p, DriverConfig[D, O]{Kind: k, BuiltIn: builtIn})
}

// DriverConfig configures [DriverWith]. Kind and BuiltIn are required.
type DriverConfig[D driver.Driver, O any] struct {
	// Kind and BuiltIn are those of [Driver].
	Kind    driver.Kind[D]
	BuiltIn *driver.Registry[D]
	// Options returns the driver's options if the component does not embed [DriverOptions] but has them under other names. It is called at
	// the start and at each reload. Nil: the embedded DriverOptions.
	Options func(o *O) driver.Options
	// Option is the option that names the driver. Default "driver".
	Option string
	// Given are options that the component itself gives to the driver, such as the name of the host. The driver's section cannot have them.
	Given map[string]string
	// GivenBy maps the names of Given to the options of the component, such as "state_path", that have their values. If the driver refuses one of Given, the
	// error names the component's option. Default: the error names the section of the driver.
	GivenBy map[string]string
	// Probe tries a new program at a reload, before it replaces the running one. Nil: Info of the driver.
	Probe func(ctx context.Context, d D) error
}

// DriverWith is [Driver] with more settings. It panics if the options do not embed DriverOptions and cfg has no Options.
func DriverWith[D driver.Driver, O any](p *Process[O], cfg DriverConfig[D, O]) (func() D, error) {
	if cfg.Options == nil {
		if findOptions[driver.Options](p.Options) == nil {
			panic("component: Driver: the options do not embed component.DriverOptions: embed component.DriverOptions in the struct of options")
		}
		cfg.Options = func(o *O) driver.Options { return *findOptions[driver.Options](o) }
	}
	if cfg.Probe == nil {
		cfg.Probe = func(ctx context.Context, d D) error {
			_, err := d.Info(ctx)
			return err
		}
	}
	o := cfg.Options(p.Options)
	part := &driverPart[D, O]{p: p, DriverConfig: cfg, name: o.Driver}
	plugin, err := part.config(&o)
	if err != nil {
		return nil, err
	}
	if err := cfg.BuiltIn.Validate(cfg.Kind, o.Driver, plugin); err != nil {
		return nil, part.nameOption(&o, err)
	}
	if part.Plugin, err = cfg.BuiltIn.New(cfg.Kind, o.Driver, plugin); err != nil {
		return nil, part.nameOption(&o, err)
	}
	p.tell.drivers.Add(o.Name(), p.Host, part.Plugin)
	p.addPart(phaseDriver, p.named("driver "+cfg.Kind.Name), "", part) // the label is empty: the part's own errors already name the option
	p.probes = append(p.probes, probe{cmp.Or(cfg.Option, "driver"), func(ctx context.Context) error {
		one, err := cfg.BuiltIn.Launch(ctx, cfg.Kind, o.Driver, plugin)
		if err != nil {
			return part.nameOption(&o, err)
		}
		_, err = one.Driver().Info(ctx)
		return errors.Join(err, one.Close(ctx))
	}})
	return part.Driver, nil
}

// driverPart is a driver as a part. Its errors name the wrong option, which may be one of the driver's own.
type driverPart[D driver.Driver, O any] struct {
	*driver.Plugin[D]
	DriverConfig[D, O]

	p    *Process[O]
	name string
}

func (d *driverPart[D, O]) config(o *driver.Options) (driver.PluginConfig, error) {
	cfg := driver.PluginConfig{}
	for name := range d.Given {
		if _, ok := o.Drivers[o.Section()][name]; ok { // rejected: with another value, such as another host's name, the driver could use the data of that host
			return cfg, d.nameOption(o, optionError(name, fault.New(fault.Invalid, "option %s: cannot be set here, because the service sets it: remove it", name)))
		}
	}
	cfg, err := o.Config()
	if err == nil {
		err = cfg.Configure(d.Given)
	}
	cfg.Logger, cfg.Observe = d.p.Log.With("host", d.p.Host), d.p.tell.drivers.Observe(o.Name(), d.p.Host)
	return cfg, d.nameOption(o, err)
}

// nameOption returns err with the name of the option that it is about: an option of the driver, the component's option that gives a value to the driver, or the
// option that names the driver.
func (d *driverPart[D, O]) nameOption(o *driver.Options, err error) error {
	name := cmp.Or(d.Option, "driver")
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Meta["option"] != "" {
		own := f.Meta["option"]
		name = "driver_" + o.Section() + "." + own
		if _, set := o.Drivers[o.Section()][own]; !set && d.GivenBy[own] != "" {
			name = d.GivenBy[own]
		}
	}
	return optionError(name, err)
}

// Start starts the driver.
func (d *driverPart[D, O]) Start(ctx context.Context) error {
	err := d.Plugin.Start(ctx)
	if err == nil || errors.Is(err, fault.Unavailable) { // the App repeats Start while its error is Unavailable
		return err
	}
	o := d.Options(d.p.Options)
	return d.p.read.place(d.nameOption(&o, err))
}

// Reload replaces the driver's program if the program or its options have changed. A built-in driver keeps its options, and a change is
// logged.
func (d *driverPart[D, O]) Reload(ctx context.Context) error {
	o := d.Options(d.p.Current())
	cfg, err := d.config(&o)
	if err == nil {
		cfg.Program = d.name
		err = d.Replace(ctx, cfg, d.Probe)
	}
	if err == nil {
		return nil
	}
	if slices.Contains(d.BuiltIn.Names(), d.name) {
		d.p.Log.WarnContext(ctx, "changed options of the driver require a restart", "driver", d.name, "error", err)
		return nil
	}
	return d.p.read.place(d.nameOption(&o, err))
}

var _ service.Reloader = (*driverPart[driver.Driver, Options])(nil)
