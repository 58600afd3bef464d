// Ask a running server from Java, with stubs made of the .proto files. With Debian's packages:
//
//   apt-get install default-jdk-headless libgrpc-java protobuf-compiler protobuf-compiler-grpc-java-plugin
//   cd examples/java && mkdir stubs
//   protoc -I ../../proto --plugin=protoc-gen-grpc-java=/usr/bin/grpc_java_plugin \
//       --java_out=stubs --grpc-java_out=stubs router/v1/inference.proto
//   javac -cp '/usr/share/java/*' -d stubs Client.java $(find stubs -name '*.java')
//   java -cp 'stubs:/usr/share/java/*' Client [HOST:PORT] [TEXT]
//
// With Gradle or Maven: io.grpc's grpc-netty-shaded, grpc-protobuf and grpc-stub, and the protobuf plugin on ../../proto.
//
// Where it speaks TLS and asks who calls (by Maven's Netty: Debian's needs a native library; the key as PKCS#8):
//
//   java -cp 'stubs:/usr/share/java/*' Client --ca ca.pem --token TOKEN HOST:PORT
//   java -cp 'stubs:/usr/share/java/*' Client --ca ca.pem --cert client.pem --key client.key HOST:PORT
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import lorarouter.router.v1.GenerateRequest;
import lorarouter.router.v1.GenerateResponse;
import lorarouter.router.v1.InferenceServiceGrpc;
import lorarouter.router.v1.InferenceServiceGrpc.InferenceServiceBlockingStub;
import lorarouter.router.v1.Input;
import lorarouter.router.v1.Sampling;
import lorarouter.router.v1.StreamGenerateRequest;
import lorarouter.router.v1.StreamGenerateResponse;

public final class Client {
  private static final String QUESTION = "Which ICD-10-CM chapter does Beard ringworm belong to?";

  public static void main(String[] arguments) throws Exception {
    Map<String, String> flags = new HashMap<>();
    List<String> rest = new ArrayList<>();
    for (int i = 0; i < arguments.length; i++) {
      if (arguments[i].startsWith("--")) flags.put(arguments[i].substring(2), arguments[++i]);
      else rest.add(arguments[i]);
    }
    String target = rest.size() > 0 ? rest.get(0) : "127.0.0.1:50051";
    Input input = Input.newBuilder().setText(rest.size() > 1 ? rest.get(1) : QUESTION).build();
    Sampling sampling = Sampling.newBuilder().setMaxTokens(32).build();

    ManagedChannel channel = Grpc.newChannelBuilder(target, credentials(flags)).build();
    try {
      InferenceServiceBlockingStub stub = InferenceServiceGrpc.newBlockingStub(channel);
      if (flags.containsKey("token")) stub = stub.withInterceptors(bearer(flags.get("token")));

      GenerateRequest whole = GenerateRequest.newBuilder().setInput(input).setSampling(sampling).build();
      GenerateResponse answer = stub.withDeadlineAfter(60, TimeUnit.SECONDS).generate(whole);
      System.out.println("[" + name(answer.getDecision().getAdapter()) + "] " + answer.getText());

      StreamGenerateRequest streamed = StreamGenerateRequest.newBuilder().setInput(input).setSampling(sampling).build();
      Iterator<StreamGenerateResponse> events = stub.withDeadlineAfter(60, TimeUnit.SECONDS).streamGenerate(streamed);
      while (events.hasNext()) {
        StreamGenerateResponse event = events.next();
        switch (event.getEventCase()) {
          case STARTED -> System.out.print("[" + name(event.getStarted().getDecision().getAdapter()) + "] ");
          case DELTA -> System.out.print(event.getDelta().getText());
          case FINISHED -> System.out.println("\n" + event.getFinished().getReason());
          default -> { } // what a later server may send
        }
      }
    } catch (StatusRuntimeException error) {
      System.err.println(error.getStatus().getCode() + ": " + error.getStatus().getDescription());
      System.exit(1);
    } finally {
      channel.shutdownNow();
    }
  }

  private static String name(String adapter) {
    return adapter.isEmpty() ? "base" : adapter;
  }

  private static ChannelCredentials credentials(Map<String, String> flags) throws IOException {
    if (!flags.containsKey("ca")) {
      if (!flags.isEmpty()) throw new IllegalArgumentException("--token, --cert and --key need --ca");
      return InsecureChannelCredentials.create();
    }
    TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder().trustManager(new File(flags.get("ca")));
    if (flags.containsKey("cert")) tls.keyManager(new File(flags.get("cert")), new File(flags.get("key")));
    return tls.build();
  }

  private static io.grpc.ClientInterceptor bearer(String token) {
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    return MetadataUtils.newAttachHeadersInterceptor(headers);
  }
}
