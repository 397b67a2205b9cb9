package component

import (
	"context"
	"errors"
	"slices"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
)

// Driver adds the driver that the options name: one of builtIn, or a program, which is supervised and replaced at a reload. The result
// returns the driver in use, for each call anew. The error names the wrong option; Wire returns it.
//
// Driver panics if the options do not embed [DriverOptions].
func Driver[D driver.Driver, O any](p *Process[O], k driver.Kind[D], builtIn *driver.Registry[D]) (func() D, error) {
	o := embedded[driver.Options](p.Options)
	if o == nil {
		panic("component: Driver: the options do not embed component.DriverOptions: write component.DriverOptions as a field without a name in them")
	}
	part := &driverPart[D, O]{p: p, kind: k, builtIn: builtIn, name: o.Driver}
	cfg, err := part.config(o)
	if err != nil {
		return nil, err
	}
	if err := builtIn.Validate(k, o.Driver, cfg); err != nil {
		return nil, part.wrong(o, err)
	}
	if part.Plugin, err = builtIn.New(k, o.Driver, cfg); err != nil {
		return nil, part.wrong(o, err)
	}
	p.tell.drivers.Add(o.Driver, p.Host, part.Plugin)
	p.addPart(phaseDriver, "driver "+k.Name, "", part) // without a label: its errors name the option
	p.probes = append(p.probes, probe{"DEFAULT", "driver", func(ctx context.Context) error {
		one, err := builtIn.Launch(ctx, k, o.Driver, cfg)
		if err != nil {
			return err
		}
		_, err = one.Driver().Info(ctx)
		return errors.Join(err, one.Close(ctx))
	}})
	return part.Driver, nil
}

// driverPart is a driver as a part. Its errors name the wrong option, which may be one of the driver's own.
type driverPart[D driver.Driver, O any] struct {
	*driver.Plugin[D]

	p       *Process[O]
	kind    driver.Kind[D]
	builtIn *driver.Registry[D]
	name    string
}

func (d *driverPart[D, O]) config(o *driver.Options) (driver.PluginConfig, error) {
	cfg, err := o.Config()
	cfg.Logger, cfg.Observe = d.p.Log, d.p.tell.drivers.Observe(d.name, d.p.Host)
	return cfg, d.wrong(o, err)
}

// wrong returns err with the name of the option that it is about.
func (d *driverPart[D, O]) wrong(o *driver.Options, err error) error {
	name := "driver"
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Meta["option"] != "" {
		name = "driver_" + o.Section() + "." + f.Meta["option"]
	}
	return optionError(name, err)
}

// Start starts the driver.
func (d *driverPart[D, O]) Start(ctx context.Context) error {
	err := d.Plugin.Start(ctx)
	if err == nil || errors.Is(err, fault.Unavailable) { // the App waits for a part with the code Unavailable
		return err
	}
	return d.p.read.place(d.wrong(embedded[driver.Options](d.p.Options), err))
}

// Reload replaces the driver's program if the program or its options have changed. A built-in driver keeps its options, and a change is
// logged.
func (d *driverPart[D, O]) Reload(ctx context.Context) error {
	o := embedded[driver.Options](d.p.Current())
	cfg, err := d.config(o)
	if err == nil {
		cfg.Program = d.name
		err = d.Replace(ctx, cfg, func(ctx context.Context, next D) error {
			_, err := next.Info(ctx)
			return err
		})
	}
	if err == nil {
		return nil
	}
	if slices.Contains(d.builtIn.Names(), d.name) {
		d.p.Log.WarnContext(ctx, "changed options of the driver require a restart", "driver", d.name, "error", err)
		return nil
	}
	return d.p.read.place(d.wrong(o, err))
}

var _ service.Reloader = (*driverPart[driver.Driver, Options])(nil)
