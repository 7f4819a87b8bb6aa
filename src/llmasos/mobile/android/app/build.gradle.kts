plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

// The model lies beside this project, where `llmasos verify` finds it; the app carries a copy.
val model = layout.buildDirectory.dir("model")
val copyModel by tasks.registering(Sync::class) {
    from(rootDir) { include("model.pte", "llmasos.json", "certificate.json", "golden.json", "tokenizer.json", "reader.json") }
    into(model)
}

android {
    namespace = "app.llmasos"
    compileSdk = 36

    defaultConfig {
        applicationId = "app.llmasos.@ID@"
        minSdk = 23
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    sourceSets["main"].assets.srcDir(model)
    androidResources { noCompress += "pte" }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin { jvmToolchain(17) }

tasks.named("preBuild") { dependsOn(copyModel) }

dependencies {
    implementation("org.pytorch:executorch-android:@EXECUTORCH@")
}
