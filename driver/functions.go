package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/armature-go/armature/fault"
)

// Functions returns a Kind without a .proto file. D is a struct that embeds [Driver] and has a field for each method:
//
//	type Greeter struct {
//		driver.Driver
//		Greet func(ctx context.Context, name string) (greeting string, err error)
//	}
//
//	var Kind = driver.Functions[Greeter]("hello", 1)
//
// A field has the type func(context.Context[, In]) ([Out, ]error). In and Out cross the wire as JSON, so an older program ignores a new field
// of In or Out. A driver sets the field Driver, see [Static], and the functions that it has. A call of a function that is
// nil fails with Unimplemented. If an argument or a result cannot be JSON, the call fails with Invalid or Internal, and
// the error names the method.
//
// The gRPC service is armature.functions.NAME. Its methods have the names of the fields. Request and reply of each method are a
// google.protobuf.StringValue with the JSON text. Without In or Out the text is empty. A program in another language serves the
// same gRPC service.
//
// Use a Kind with a .proto file if vendors write drivers in several languages, or if messages are large.
//
// Functions panics if the type D does not follow these rules, which is a programmer's error.
func Functions[D Driver](name string, protocol int) Kind[D] {
	methods := methodsOf(reflect.TypeFor[D]())
	service := "armature.functions." + name
	k := Kind[D]{
		Name: name, Protocol: protocol,
		Register: func(s grpc.ServiceRegistrar, d D) {
			desc := grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}
			for _, m := range methods {
				desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: m.name, Handler: m.handler("/" + service + "/" + m.name)})
			}
			s.RegisterService(&desc, d)
		},
		Client: func(c grpc.ClientConnInterface, _ int) D {
			var d D
			v := reflect.ValueOf(&d).Elem()
			v.FieldByName(driverField).Set(reflect.ValueOf(Remote(c)))
			for _, m := range methods {
				v.Field(m.field).Set(m.caller(c, "/"+service+"/"+m.name))
			}
			return d
		},
		complete: func(d D) (D, error) {
			v := reflect.ValueOf(&d).Elem()
			if v.FieldByName(driverField).IsNil() {
				return d, fault.New(fault.Internal, "the driver of kind %s has no Driver: set the field, for example to driver.Static", name)
			}
			for _, m := range methods {
				if f := v.Field(m.field); f.IsNil() {
					f.Set(m.missing())
				}
			}
			return d, nil
		},
	}
	k.check()
	return k
}

// Static returns a Driver with a fixed Info and nothing to close, for a struct of [Functions].
func Static(info Info) Driver { return static{info} }

type static struct{ info Info }

// Info implements [Driver].
func (s static) Info(context.Context) (Info, error) { return s.info, nil }

// Close implements [Driver].
func (static) Close() error { return nil }

// driverField is the name of the embedded Driver.
const driverField = "Driver"

// method is a field of a struct of functions.
type method struct {
	name    string
	field   int
	fn      reflect.Type
	in, out reflect.Type // nil: the function has none
}

var (
	contextType = reflect.TypeFor[context.Context]()
	errorType   = reflect.TypeFor[error]()
)

// methodsOf returns the methods of a struct of functions. It panics if the struct does not follow the rules of [Functions].
func methodsOf(t reflect.Type) (out []method) {
	if t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("driver: Functions: %v is not a struct of functions", t))
	}
	embeds := false
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Type == reflect.TypeFor[Driver]() {
			embeds = true
			continue
		}
		m, ok := newMethod(i, f)
		if !ok {
			panic(fmt.Sprintf("driver: Functions: field %s of %v is a %v; each field must be exported, and a func(context.Context[, In]) ([Out, ]error)", f.Name, t, f.Type))
		}
		out = append(out, m)
	}
	if !embeds || len(out) == 0 {
		panic(fmt.Sprintf("driver: Functions: %v must embed driver.Driver, and have a function", t))
	}
	return out
}

// newMethod returns the method of a field. The result ok reports whether the field has an allowed type.
func newMethod(field int, f reflect.StructField) (m method, ok bool) {
	if !f.IsExported() || f.Anonymous || f.Type.Kind() != reflect.Func || f.Type.IsVariadic() {
		return m, false
	}
	in, out := f.Type.NumIn(), f.Type.NumOut()
	if in < 1 || in > 2 || out < 1 || out > 2 || f.Type.In(0) != contextType || f.Type.Out(out-1) != errorType {
		return m, false
	}
	m = method{name: f.Name, field: field, fn: f.Type}
	if in == 2 {
		m.in = f.Type.In(1)
	}
	if out == 2 {
		m.out = f.Type.Out(0)
	}
	return m, true
}

// caller returns the function of the worker, which calls the program.
func (m method) caller(c grpc.ClientConnInterface, path string) reflect.Value {
	return m.function(func(args []reflect.Value) (reflect.Value, error) { return m.call(c, path, args) })
}

// missing returns a function that fails with Unimplemented, for a driver whose function is nil.
func (m method) missing() reflect.Value {
	return m.function(func([]reflect.Value) (reflect.Value, error) {
		return m.none(), fault.New(fault.Unimplemented, "the driver has no function %s", m.name)
	})
}

// function returns a function of the field's type that calls f.
func (m method) function(f func(args []reflect.Value) (out reflect.Value, err error)) reflect.Value {
	return reflect.MakeFunc(m.fn, func(args []reflect.Value) []reflect.Value {
		out, err := f(args)
		results := []reflect.Value{reflect.ValueOf(&err).Elem()}
		if m.out != nil {
			results = append([]reflect.Value{out}, results...)
		}
		return results
	})
}

// none returns the zero result.
func (m method) none() (out reflect.Value) {
	if m.out != nil {
		out = reflect.Zero(m.out)
	}
	return out
}

func (m method) call(c grpc.ClientConnInterface, path string, args []reflect.Value) (_ reflect.Value, err error) {
	req, resp := new(wrapperspb.StringValue), new(wrapperspb.StringValue)
	if m.in != nil {
		if req.Value, err = encodeJSON(args[1], fault.Invalid, m.name, "argument"); err != nil {
			return m.none(), err
		}
	}
	err = c.Invoke(args[0].Interface().(context.Context), path, req, resp) //nolint:forcetypeassert // the type of the first argument
	if err != nil || m.out == nil {
		return m.none(), err
	}
	return decodeJSON(resp.GetValue(), m.out, fault.Internal, m.name, "result")
}

// handler returns the function of the program, which calls the driver's function.
func (m method) handler(path string) grpc.MethodHandler {
	return func(d any, ctx context.Context, read func(any) error, around grpc.UnaryServerInterceptor) (any, error) {
		req := new(wrapperspb.StringValue)
		if err := read(req); err != nil {
			return nil, err
		}
		serve := func(ctx context.Context, _ any) (any, error) {
			return m.serve(ctx, reflect.ValueOf(d).Field(m.field), req.GetValue())
		}
		if around == nil {
			return serve(ctx, req)
		}
		return around(ctx, req, &grpc.UnaryServerInfo{Server: d, FullMethod: path}, serve)
	}
}

func (m method) serve(ctx context.Context, fn reflect.Value, text string) (*wrapperspb.StringValue, error) {
	args := []reflect.Value{reflect.ValueOf(ctx)}
	if m.in != nil {
		in, err := decodeJSON(text, m.in, fault.Invalid, m.name, "argument")
		if err != nil {
			return nil, err
		}
		args = append(args, in)
	}
	results := fn.Call(args)
	if err, _ := reflect.TypeAssert[error](results[len(results)-1]); err != nil {
		return nil, err
	}
	resp := new(wrapperspb.StringValue)
	if m.out == nil {
		return resp, nil
	}
	var err error
	resp.Value, err = encodeJSON(results[0], fault.Internal, m.name, "result")
	return resp, err
}

// encodeJSON returns the JSON of an argument or a result.
func encodeJSON(v reflect.Value, code fault.Code, name, what string) (string, error) {
	raw, err := json.Marshal(v.Interface())
	if err != nil {
		return "", fault.New(code, "%s: the %s cannot be encoded: %w", name, what, err)
	}
	return string(raw), nil
}

// decodeJSON returns the argument or the result that a JSON text has.
func decodeJSON(text string, t reflect.Type, code fault.Code, name, what string) (reflect.Value, error) {
	p := reflect.New(t)
	if err := json.Unmarshal([]byte(text), p.Interface()); err != nil {
		if text == "" {
			err = errors.New("it is missing")
		}
		return reflect.Zero(t), fault.New(code, "%s: the %s cannot be decoded: %w", name, what, err)
	}
	return p.Elem(), nil
}
